"""From a pickle's description of tensors to TensorInfo: do the views lie in their storages, do the storages have the bytes they claim."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from steelyard.checkpoint.dtypes import ITEM_BYTES
from steelyard.checkpoint.inspection import StorageInfo, TensorInfo
from steelyard.checkpoint.pickle_values import PStorage, PTensor
from steelyard.checkpoint.reasons import Reason, ReasonCode, shown

MAX_NAME = 1024
EXPANDED_BYTES = 1024**3
"""A view may repeat its storage's bytes (stride 0); one that would unfold to more than this, and eight times its storage, is a bomb."""


class Findings:
    """Collects reasons, and of each kind no more than three with the count of the rest: a broken file repeats itself."""

    def __init__(self) -> None:
        self._first: dict[ReasonCode, list[Reason]] = {}
        self._count: dict[ReasonCode, int] = {}

    def add(self, code: ReasonCode, message: str, where: str = "") -> None:
        self._count[code] = self._count.get(code, 0) + 1
        held = self._first.setdefault(code, [])
        if len(held) < 3:
            held.append(Reason(code, message, where))

    def reasons(self) -> list[Reason]:
        listed: list[Reason] = []
        for code, held in self._first.items():
            listed.extend(held)
            more = self._count[code] - len(held)
            if more:
                listed.append(Reason(code, f"and {more} more of the same"))
        return listed


def storage_bytes(storage: PStorage) -> int:
    return storage.numel * int(ITEM_BYTES[storage.dtype])


def check_storages(claimed: Mapping[str, PStorage], present: Mapping[str, StorageInfo], findings: Findings) -> None:
    """Every storage the pickle names is there with the bytes it claims, and none is there that it does not name."""
    for key, storage in claimed.items():
        held = present.get(key)
        need = storage_bytes(storage)
        if held is None:
            if need:
                findings.add("storage-missing", f"storage {shown(key)} ({need} bytes) is not in the file", key)
        elif held.nbytes != need:
            findings.add("storage-size", f"storage {shown(key)} has {held.nbytes} bytes where {need} are claimed", key)
    for key in present:
        if key not in claimed:
            findings.add("unreferenced-storage", f"storage {shown(key)} belongs to no tensor", key)


def describe(tensors: Iterable[tuple[str, PTensor]], present: Mapping[str, StorageInfo], findings: Findings) -> tuple[TensorInfo, ...]:
    """TensorInfo for each, with its place in the file; what does not fit goes to *findings*."""
    return tuple(_describe(name, tensor, present, findings) for name, tensor in tensors)


def _describe(name: str, tensor: PTensor, present: Mapping[str, StorageInfo], findings: Findings) -> TensorInfo:
    if len(name) > MAX_NAME or not name.isprintable():
        findings.add("odd-name", f"a tensor is called {shown(name)!r}", shown(name))
    item = int(ITEM_BYTES[tensor.dtype])
    numel = math.prod(tensor.shape)
    nbytes = numel * item
    storage = tensor.storage
    if storage is None:
        findings.add("meta-tensor", f"{shown(name)} has a shape but no bytes", shown(name))
        return TensorInfo(name, tensor.shape, tensor.dtype, nbytes, stride=tensor.stride)
    held = present.get(storage.key)
    size = storage_bytes(storage)
    if numel:
        last = tensor.offset + sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride, strict=True))
        if (last + 1) * item > size:
            findings.add(
                "view-outside-storage", f"{shown(name)} reaches byte {(last + 1) * item} of a storage of {size} bytes", shown(name)
            )
        elif nbytes > EXPANDED_BYTES and nbytes > 8 * size:
            findings.add("expanded-view", f"{shown(name)} would unfold {size} bytes to {nbytes}", shown(name))
    at = held.offset + tensor.offset * item if held is not None and held.offset is not None and not held.compressed else None
    return TensorInfo(
        name, tensor.shape, tensor.dtype, nbytes,
        crc32=held.crc32 if held else None, offset=at, storage=storage.key, storage_nbytes=size,
        storage_offset=tensor.offset, stride=tensor.stride,
    )  # fmt: skip
