"""Comparing tensors by their bytes, where no checksum decides: reads both files."""

from __future__ import annotations

import threading

from steelyard.checkpoint.diff import SameBytes
from steelyard.checkpoint.inspection import TensorInfo
from steelyard.errors import Stopped
from steelyard.source import ByteSource

CHUNK_BYTES = 4 * 1024 * 1024


def by_bytes(before: ByteSource, after: ByteSource, *, stop: threading.Event | None = None) -> SameBytes:
    """A comparison for `compare(…, same_bytes=…)` that reads the tensors' ranges of both sources, 4 MiB at a time.

    None for tensors whose place in the file is unknown, or laid out with different strides in the two files. A view with gaps counts as
    changed if anything between its first and last element changed. Reads as much as the tensors have: not for a remote source lightly.
    :raises Stopped: when *stop* is set, within one chunk. :raises Unreadable, OtherSide: when a source fails.
    """
    left, right = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)

    def same(a: TensorInfo, b: TensorInfo) -> bool | None:
        if a.offset is None or b.offset is None or a.shard or b.shard:
            return None
        if not (a.contiguous and b.contiguous) and a.stride != b.stride:
            return None
        size = a.span_nbytes
        if size != b.span_nbytes:
            return None
        for at in range(0, size, CHUNK_BYTES):
            if stop is not None and stop.is_set():
                raise Stopped
            count = min(CHUNK_BYTES, size - at)
            one, two = memoryview(left)[:count], memoryview(right)[:count]
            if before.readinto(a.offset + at, one) != count or after.readinto(b.offset + at, two) != count:
                return None
            if one != two:
                return False
        return True

    return same
