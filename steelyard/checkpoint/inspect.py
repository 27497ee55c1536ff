"""`inspect`: what is inside a weights file, told from its headers, without loading it and without running anything in it."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from steelyard.checkpoint.gguf import read_gguf
from steelyard.checkpoint.inspection import Format, Inspection, StorageInfo, TensorInfo, histogram
from steelyard.checkpoint.onnx import read_onnx
from steelyard.checkpoint.pickle_walk import PickleWalk
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, ranked, shown, worst_verdict
from steelyard.checkpoint.safetensors_file import read_safetensors
from steelyard.checkpoint.sharded import OpenBeside, joined, read_index
from steelyard.checkpoint.sniff import Kind, sniff
from steelyard.checkpoint.tensors import Findings, check_storages, describe
from steelyard.checkpoint.torch_legacy import plain_pickle, read_torch_legacy
from steelyard.checkpoint.torch_zip import read_torch_zip
from steelyard.checkpoint.weights_key import find_weights, tensor_bytes
from steelyard.errors import Gone, Missing, WrongType
from steelyard.source import ByteSource, LocalFile


def inspect(source: ByteSource, *, allow_globals: frozenset[str] = frozenset(), open_beside: OpenBeside | None = None) -> Inspection:
    """Look into *source* by at most a few bounded reads and say what it is, what it holds, and whether it may be trusted.

    Never raises for what the file contains: that is what the verdict and its reasons are for. *allow_globals* are names ("module.name")
    beyond what a state dict needs that this model may use; "torchscript" lets TorchScript pass. No allowance lifts "hostile".
    An index.json of a sharded set is inspected with its shards, opened by *open_beside*; a local one opens the files in its own folder.
    Bounds: below 2 s and 300 MiB whatever the file; a remote 5 GB checkpoint costs two or three requests and less than 1 MiB.
    Not promised: that the tensors' values are what they were; only their place, shape and recorded checksum are told here.
    :raises Unreadable, OtherSide: when the source itself fails.
    """
    return _inspect(source, allow_globals, open_beside or _beside(source))


def _inspect(source: ByteSource, allow: frozenset[str], open_beside: OpenBeside | None, *, may_be_set: bool = True) -> Inspection:
    started = time.perf_counter()
    reader = RangeReader(source)
    draft = _Draft()
    try:
        if _read(reader, allow, draft) == "index":
            if not may_be_set:
                raise NotWeights("header-broken", "an index where a shard should be")
            _inspect_set(draft, reader, allow, open_beside)
    except NotWeights as error:
        draft.reasons.append(error.reason)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError, struct.error) as error:
        # A net under every reader of a stranger's bytes. What falls into it is a fault of ours; the user gets "can't judge", not a traceback.
        draft.reasons.append(Reason("not-understood", f"this file is beyond what was foreseen ({type(error).__name__}); please report it"))
    reasons = ranked(draft.reasons)
    return Inspection(
        verdict=worst_verdict(reasons), reasons=reasons, format=draft.format, name=source.name, size_bytes=reader.size_bytes,
        tensors=draft.tensors, dtypes=histogram(draft.tensors),
        weights_key=".".join(draft.weights_path) or None, weights_path=draft.weights_path,
        other_bytes=sum(draft.others.values()), other_tensors=draft.other_tensors, others=draft.others,
        globals=tuple(sorted(draft.globals)), metadata=draft.metadata, storages=draft.storages,
        bytes_read=reader.bytes_read, requests=reader.requests, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _inspect_set(draft: _Draft, reader: RangeReader, allow: frozenset[str], open_beside: OpenBeside | None) -> None:
    """Inspect every shard that the index names, and compare what index and shards tell."""
    index = read_index(reader)
    draft.metadata = {"shards": list(index.shards), "total_size": index.total_size}
    if open_beside is None:
        draft.reasons.append(Reason("shards-unseen", f"an index of {len(index.shards)} files, which were not looked into"))
        return
    parts: dict[str, Inspection] = {}
    for shard in index.shards:
        try:
            opened = open_beside(shard)
        except (Missing, Gone, WrongType) as error:
            draft.reasons.append(
                Reason("shard-missing", f"the index names {shown(shard)}, which is not there: {shown(error.message)}", shown(shard))
            )
            continue
        try:
            parts[shard] = _inspect(opened, allow, None, may_be_set=False)
        finally:
            opened.close()
        reader.requests += parts[shard].requests
        reader.bytes_read += parts[shard].bytes_read
    draft.tensors, reasons = joined(index, parts)
    draft.reasons += reasons
    formats = {part.format for part in parts.values()}
    draft.format = formats.pop() if len(formats) == 1 else "unknown"
    draft.globals = {name for part in parts.values() for name in part.globals}
    draft.other_tensors = sum(part.other_tensors for part in parts.values())
    for part in parts.values():
        for key, count in part.others.items():
            draft.others[key] = draft.others.get(key, 0) + count


def _beside(source: ByteSource) -> OpenBeside | None:
    """Files in the folder of a local index; None for a remote one, whose neighbours only the caller can open."""
    if not isinstance(source, LocalFile):
        return None
    folder = source.path.parent
    return lambda name: LocalFile(folder / name)


class _Draft:
    """What is known so far; whatever stops the reading, this much is told."""

    def __init__(self) -> None:
        self.format: Format = "unknown"
        self.reasons: list[Reason] = []
        self.tensors: tuple[TensorInfo, ...] = ()
        self.storages: tuple[StorageInfo, ...] = ()
        self.weights_path: tuple[str, ...] = ()
        self.others: dict[str, int] = {}
        self.other_tensors = 0
        self.globals: Iterable[str] = ()
        self.metadata: Mapping[str, Any] = {}


_OTHER_ZIPS = frozenset({"plain-zip", "numpy", "torch-export", "torch-package"})
"""Reasons that say that a zip is whole, and no torch.save's."""

_READERS: dict[str, tuple[Format, Callable[[RangeReader], tuple[tuple[TensorInfo, ...], dict[str, Any], list[Reason]]]]] = {
    "safetensors": ("safetensors", read_safetensors),
    "gguf": ("gguf", read_gguf),
    "onnx": ("onnx", read_onnx),
}


def _read(reader: RangeReader, allow: frozenset[str], draft: _Draft) -> Kind:
    head = reader.head()
    kind = sniff(head, reader.size_bytes).kind
    if kind == "zip":
        draft.format = "torch-zip"
        try:
            archive = read_torch_zip(reader, allow)
        except NotWeights as error:
            if error.reason.code in _OTHER_ZIPS:
                draft.format = "unknown"
            raise
        draft.format, draft.metadata = archive.format, archive.metadata
        draft.reasons += archive.reasons
        draft.globals = archive.pickle.globals
        _tensors(draft, archive.pickle, archive.storages)
    elif kind in ("legacy", "pickle"):
        draft.format = "torch-legacy" if kind == "legacy" else "unknown"
        legacy = read_torch_legacy(reader, allow) if kind == "legacy" else plain_pickle(reader, allow)
        draft.reasons += legacy.reasons
        draft.globals = legacy.globals
        _polyglot(reader, draft)
        if kind == "legacy":
            _tensors(draft, legacy.pickle, legacy.storages)
    elif kind != "index":
        name, read = _READERS[kind]
        draft.format = name
        draft.tensors, draft.metadata, reasons = read(reader)
        draft.reasons += reasons
        draft.storages = tuple(StorageInfo(t.name, t.nbytes, t.offset, None) for t in draft.tensors if t.offset is not None)
        _polyglot(reader, draft)
        if not draft.tensors and not reasons:
            draft.reasons.append(Reason("no-tensors", "it holds no tensor"))
    return kind


def _tensors(draft: _Draft, pickle: PickleWalk, storages: dict[str, StorageInfo]) -> None:
    """Describe the tensors of a walked pickle, split into weights and the rest, and check them against the storages."""
    if not pickle.complete:
        return
    findings = Findings()
    check_storages(pickle.storages, storages, findings)
    weights = find_weights(pickle.value)
    draft.weights_path = weights.path
    draft.tensors = describe(weights.tensors, storages, findings)
    describe(((".".join(path), tensor) for path, tensor in weights.others), storages, findings)
    draft.other_tensors = len(weights.others)
    for path, tensor in weights.others:
        key = shown(path[0], 60)
        draft.others[key] = draft.others.get(key, 0) + tensor_bytes(tensor)
    draft.storages = tuple(storages.values())
    for name in weights.duplicates[:3]:
        findings.add("duplicate-name", f"{shown(name)} is set twice in one dict", shown(name))
    if not draft.tensors:
        findings.add("no-tensors", "it holds no tensor")
    draft.reasons += findings.reasons()


def _polyglot(reader: RangeReader, draft: _Draft) -> None:
    """A file that is two things at once shows different readers different contents."""
    if not reader.is_local and draft.format in ("safetensors", "gguf", "onnx"):
        return  # its layout adds up to the last byte, so a zip could only be inside a tensor: not worth a request
    _, tail = reader.tail()
    at = tail.rfind(b"PK\x05\x06")
    if at >= 0 and len(tail) - at >= 22 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
        draft.reasons.append(Reason("polyglot", "it also ends as a zip does: other tools would see other contents"))
