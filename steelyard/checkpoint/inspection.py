"""The nouns of this package: a tensor as its file describes it, and what was found in a weights file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from steelyard.checkpoint.reasons import Reason, Verdict

Format = Literal["torch-zip", "torch-legacy", "torchscript", "safetensors", "gguf", "onnx", "unknown"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header tells it; nothing here was read from its values.

    *name* is the key inside the weights (see `weights_key`). *nbytes* is elements x element size, also for a view that shares bytes.
    *offset* is the byte in the file where its first element lies, None when the file does not say or it is compressed.
    *crc32* is the zip's checksum of the **whole storage** it lies in, None where none was computed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    crc32: int | None = None
    offset: int | None = None
    storage: str | None = None
    storage_nbytes: int = 0
    storage_offset: int = 0
    """In elements, as torch's storage_offset()."""
    stride: tuple[int, ...] | None = None
    """In elements; None means C-contiguous."""
    shard: str | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def contiguous(self) -> bool:
        return self.stride is None or self.numel <= 1 or self.stride == contiguous_stride(self.shape)

    @property
    def whole_storage(self) -> bool:
        """Its bytes are exactly its storage's bytes, so the storage's CRC is its own."""
        return self.nbytes == self.storage_nbytes and self.storage_offset == 0

    @property
    def span_nbytes(self) -> int:
        """Bytes from the first to just after the last element it touches."""
        if self.numel == 0:
            return 0
        if self.stride is None:
            return self.nbytes
        item = self.nbytes // self.numel
        return item * (1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def histogram(tensors: Iterable[TensorInfo]) -> dict[str, int]:
    """Bytes by dtype."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.nbytes
    return counts


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is inside a weights file, told without loading it and without running anything in it.

    *tensors* are those of the weights only; what else the file holds (optimizer state, a second copy of the weights) is *other_bytes*
    and *other_tensors*. *weights_key* is the dotted path to the weights, None when they are at the top. *dtypes* counts bytes.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    format: Format
    name: str = ""
    size_bytes: int = 0
    tensors: tuple[TensorInfo, ...] = ()
    dtypes: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    weights_key: str | None = None
    weights_path: tuple[str, ...] = ()
    other_bytes: int = 0
    other_tensors: int = 0
    others: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    """Bytes by top-level key of what is not weights."""
    globals: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    storages: tuple[StorageInfo, ...] = ()
    bytes_read: int = 0
    requests: int = 0
    seconds: float = 0.0

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(reason.code for reason in self.reasons)

    def as_json(self) -> dict[str, Any]:
        """The contract's inspect row: counts and sums, not the list of tensors (`tensors_as_json` has that)."""
        return {
            "verdict": self.verdict,
            "reasons": [reason.as_json() for reason in self.reasons],
            "format": self.format,
            "tensors": len(self.tensors),
            "parameters": self.parameters,
            "tensor_bytes": self.tensor_bytes,
            "size_bytes": self.size_bytes,
            "dtypes": dict(self.dtypes),
            "weights_key": self.weights_key,
            "other_bytes": self.other_bytes,
            "other_tensors": self.other_tensors,
            "others": dict(self.others),
            "globals": list(self.globals),
            "metadata": dict(self.metadata),
            "bytes_read": self.bytes_read,
            "requests": self.requests,
            "seconds": round(self.seconds, 4),
        }

    def tensors_as_json(self) -> list[dict[str, Any]]:
        return [
            {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "nbytes": t.nbytes, "crc32": t.crc32, "offset": t.offset}
            for t in self.tensors
        ]


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """A run of tensor bytes in the file: *offset* and *nbytes* in the file, *crc32* when the container has one. *record* is the whole name
    that the container writes before it, where it writes one.
    """

    key: str
    nbytes: int
    offset: int | None
    crc32: int | None
    compressed: bool = False
    record: str = ""
