"""A model in several files: an index.json names for each tensor the file it lies in (transformers' and diffusers' layout)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from steelyard.checkpoint.inspection import Inspection, TensorInfo
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.safetensors_file import parse_json
from steelyard.checkpoint.tensors import Findings
from steelyard.source import ByteSource

MAX_INDEX_BYTES = 16 * 1024 * 1024
MAX_SHARDS = 2000

OpenBeside = Callable[[str], ByteSource]
"""Opens the file of a (confined) name beside the index; raises Missing or Gone when there is none."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """*shards* in the order in which they are first named; *weight_map* from tensor name to shard."""

    shards: tuple[str, ...]
    weight_map: dict[str, str]
    total_size: int | None
    """Tensor bytes of the whole set, as the index claims; None when it does not."""


def confined(name: str) -> bool:
    """Whether *name* is a plain relative path that stays below its folder on every system."""
    parts = name.split("/")
    return bool(name) and "\\" not in name and ":" not in name and name.isprintable() and not any(part in ("", ".", "..") for part in parts)


def read_index(reader: RangeReader) -> ShardIndex:
    """Read an index.json.

    :raises NotWeights: "header-broken" when it is no index, "escaping-name" when a shard's name would leave the folder.
    """
    if reader.size_bytes > MAX_INDEX_BYTES:
        raise NotWeights("header-too-big", f"an index of {reader.size_bytes} bytes; more than {MAX_INDEX_BYTES} are not looked into")
    value: Any = parse_json(reader.read(0, reader.size_bytes), "header-broken", "index")
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise NotWeights("header-broken", "an index.json without a weight_map of names")
    shards = tuple(dict.fromkeys(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise NotWeights("header-too-big", f"an index of {len(shards)} files; more than {MAX_SHARDS} are not looked into")
    for shard in shards:
        if not confined(shard):
            raise NotWeights("escaping-name", f"the index names {shown(shard)!r}, which would leave its folder", shown(shard))
    metadata = value.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return ShardIndex(shards, weight_map, int(total) if isinstance(total, int | float) and 0 <= total < 2**62 else None)


def joined(index: ShardIndex, parts: Mapping[str, Inspection]) -> tuple[tuple[TensorInfo, ...], list[Reason]]:
    """The tensors of all shards as one set, and where index and shards contradict each other.

    A shard's own reasons are carried over with the shard's name.
    """
    reasons: list[Reason] = []
    findings = Findings()
    tensors: dict[str, TensorInfo] = {}
    for shard, part in parts.items():
        reasons += [
            replace(reason, message=f"{shown(shard)}: {reason.message}", where=reason.where or shown(shard)) for reason in part.reasons
        ]
        for tensor in part.tensors:
            if tensor.name in tensors:
                findings.add("duplicate-name", f"{shown(tensor.name)} is in two shards", shown(tensor.name))
            if index.weight_map.get(tensor.name) != shard:
                findings.add("unlisted-tensor", f"{shown(tensor.name)} is in {shown(shard)}, the index does not say so", shown(tensor.name))
            tensors[tensor.name] = replace(tensor, shard=shard)
    for name, shard in index.weight_map.items():
        if shard in parts and name not in tensors and parts[shard].verdict in ("ok", "suspect"):
            findings.add("storage-missing", f"the index says that {shown(name)} is in {shown(shard)}; it is not", shown(name))
    return tuple(tensors.values()), [*reasons, *findings.reasons()]
