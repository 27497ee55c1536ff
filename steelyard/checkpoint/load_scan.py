"""The value scan: every tensor byte is read once, by plain reads, for its checksum, NaN and infinity, and all-zero tensors.

Plain reads into one buffer, not the mapped tensors: memory stays at one chunk, and a bad sector is an error instead of SIGBUS.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class ScanResult:
    non_finite: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    crc_wrong: list[tuple[str, int, int]] = field(default_factory=list)
    crc_checked_bytes: int = 0
    short: str = ""


@dataclass(slots=True)
class _Range:
    """A tensor's bytes inside its storage, and what is known of them so far."""

    name: str
    begin: int
    end: int
    finite: bool = True
    zero: bool = True


def scan(path: Path, storages: list[dict[str, Any]], progress: Callable[[int], None]) -> ScanResult:
    found = ScanResult()
    buffer = bytearray(CHUNK_BYTES)
    done = reported = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for storage in sorted(storages, key=lambda row: row["offset"]):
            _scan_storage(descriptor, storage, buffer, found)
            done += storage["nbytes"]
            if done - reported >= 64 * 1024 * 1024:
                progress(done)
                reported = done
    finally:
        os.close(descriptor)
    return found


def _scan_storage(descriptor: int, storage: dict[str, Any], buffer: bytearray, found: ScanResult) -> None:
    size, offset, crc = storage["nbytes"], storage["offset"], storage["crc32"]
    ranges = [_Range(*row) for row in storage["tensors"]]
    dtype = getattr(torch, storage["dtype"], None) if storage["dtype"] else None
    view = memoryview(buffer)
    sum_so_far = 0
    for at in range(0, size, CHUNK_BYTES):
        count = min(CHUNK_BYTES, size - at)
        got = os.preadv(descriptor, [view[:count]], offset + at)
        if got < count:
            found.short = storage["key"]
            return
        if crc is not None:
            sum_so_far = zlib.crc32(view[:count], sum_so_far)
            found.crc_checked_bytes += count
        if dtype is not None:
            for part in ranges:
                _look(part, buffer, at, count, dtype)
    if crc is not None and sum_so_far != crc:
        found.crc_wrong.append((storage["key"], offset, offset + size))
    found.non_finite += [part.name for part in ranges if not part.finite]
    found.zero += [part.name for part in ranges if part.zero]


def _look(part: _Range, buffer: bytearray, at: int, count: int, dtype: torch.dtype) -> None:
    begin, end = max(part.begin, at) - at, min(part.end, at + count) - at
    if begin >= end:
        return
    item = dtype.itemsize
    if (dtype.is_floating_point or dtype.is_complex) and item >= 1 and part.finite:
        # Chunks are a multiple of every item size, so an element never straddles two of them.
        values = torch.frombuffer(buffer, dtype=dtype, count=(end - begin) // item, offset=begin)
        low, high = _extremes(values)
        part.finite = bool(torch.isfinite(low) and torch.isfinite(high))
        part.zero = part.zero and part.finite and float(low) == 0 == float(high)
    elif part.zero:
        part.zero = not any(memoryview(buffer)[begin : min(begin + 4096, end)]) and not bool(
            torch.frombuffer(buffer, dtype=torch.uint8, count=end - begin, offset=begin).any()
        )


def _extremes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest in one pass; both are NaN if any value is (torch.aminmax)."""
    if values.dtype.is_complex:
        values = torch.view_as_real(values)
    if values.dtype.itemsize == 1:
        values = values.to(torch.float32)  # no arithmetic on 8-bit floats on the CPU
    low, high = torch.aminmax(values)
    return low, high
