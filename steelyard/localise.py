"""Where a torch zip is damaged when no record of its pieces is left: the archive carries a CRC-32 for every tensor's bytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from steelyard.errors import Range, SteelyardError
from steelyard.pieces import MIB, merge_ranges, piece_size
from steelyard.source import ByteSource
from steelyard.watch import current_watch


def _crc32(source: ByteSource, start: int, length: int) -> int | None:
    crc, at = 0, start
    buffer = memoryview(bytearray(MIB))
    while at < start + length:
        current_watch().check()
        part = buffer[: min(MIB, start + length - at)]
        try:
            got = source.readinto(at, part)
        except SteelyardError:
            return None
        if got < len(part):
            return None
        crc = zlib.crc32(part, crc)
        at += got
    return crc


def suspect_ranges(source: ByteSource, size_bytes: int) -> tuple[Range, ...]:
    """Piece-aligned ranges in which the damage lies: those that hold a tensor whose CRC-32 fails. Everything, where no tensor's CRC tells.

    What lies between tensors (headers, padding) has no CRC: it counts as suspect only where every tensor holds.
    """
    from steelyard.checkpoint import inspect  # rarely needed, and a tenth of the time that a verify takes to start

    whole = ((0, size_bytes),)
    try:
        storages = inspect(source).storages
    except SteelyardError:
        return whole
    checked = [one for one in storages if one.offset is not None and one.crc32 and not one.compressed]
    bad = [
        (one.offset, one.offset + one.nbytes)
        for one in checked
        if one.offset is not None and _crc32(source, one.offset, one.nbytes) != one.crc32
    ]
    if not checked or not bad:
        return whole
    return align(bad, size_bytes)


def align(ranges: Sequence[Range], size_bytes: int) -> tuple[Range, ...]:
    """*ranges* widened to whole pieces."""
    step = piece_size(size_bytes)
    return merge_ranges((start // step * step, min(size_bytes, -(-end // step) * step)) for start, end in ranges)


def lost_tensors(source: ByteSource, lost: Sequence[Range]) -> list[str]:
    """Names of the tensors that have bytes in *lost*, as far as the headers can still be read."""
    from steelyard.checkpoint import inspect

    try:
        tensors = inspect(source).tensors
    except SteelyardError:
        return []
    spans = [(tensor.name, tensor.offset, tensor.offset + tensor.nbytes) for tensor in tensors if tensor.offset is not None]
    return [name for name, first, last in spans if any(first < end and start < last for start, end in lost)]
