"""Comparing tensors by their bytes, where no checksum decides: reads both files."""

from __future__ import annotations

import threading

from steelyard.checkpoint.diff import SameBytes
from steelyard.checkpoint.inspection import TensorInfo
from steelyard.errors import Stopped
from steelyard.source import BytesFile, ByteSource, LocalFile, read_at

CHUNK_BYTES = 4 * 1024 * 1024
FETCHED_BYTES = 16 * 1024 * 1024
"""As much of a file that lies elsewhere may be fetched only to say which of its tensors changed."""


def where_it_can(before: ByteSource, after: ByteSource, *, stop: threading.Event | None = None) -> SameBytes | None:
    """by_bytes(), nothing read before the first tensor asks; None where that would fetch more than FETCHED_BYTES from elsewhere.

    What lies elsewhere and is small is fetched whole, in one request: its tensors one by one could be thousands.
    """
    if any(not isinstance(one, LocalFile) and one.size_bytes > FETCHED_BYTES for one in (before, after)):
        return None
    ready: list[SameBytes] = []

    def same(a: TensorInfo, b: TensorInfo) -> bool | None:
        if not ready:
            ready.append(by_bytes(_at_hand(before), _at_hand(after), stop=stop))
        return ready[0](a, b)

    return same


def _at_hand(source: ByteSource) -> ByteSource:
    return source if isinstance(source, LocalFile) else BytesFile(source.name, read_at(source, 0, source.size_bytes))


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
