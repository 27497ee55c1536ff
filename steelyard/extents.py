"""Where a file's bytes lie on the medium: which files share them (reflink), and how many are a file's own. Asked by FIEMAP (Linux)."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_AT_ONCE = 512
_SYNC = 0x1
_LAST, _UNKNOWN, _DELAYED, _INLINE, _SHARED = 0x1, 0x2, 0x4, 0x200, 0x2000


@dataclass(frozen=True)
class Extent:
    """*start* in the file, *physical* on the medium, *length*, all in bytes. *shared*: another file lies there too."""

    start: int
    physical: int
    length: int
    shared: bool


def extents(path: Path) -> list[Extent] | None:
    """The extents of *path* in order; None where the file system does not tell (tmpfs, FUSE, network)."""
    found: list[Extent] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        at = 0
        while True:
            buffer = array.array("B", bytes(_HEAD.size + _AT_ONCE * _EXTENT.size))
            _HEAD.pack_into(buffer, 0, at, (1 << 64) - 1 - at, _SYNC, 0, _AT_ONCE, 0)
            fcntl.ioctl(fd, _FIEMAP, buffer)
            count = _HEAD.unpack_from(buffer)[3]
            for number in range(count):
                start, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
                if flags & (_UNKNOWN | _DELAYED | _INLINE):
                    return None
                found.append(Extent(start, physical, length, bool(flags & _SHARED)))
                at = start + length
                if flags & _LAST:
                    return found
            if count < _AT_ONCE:
                return found
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR, errno.EPERM}:
            return None
        raise
    finally:
        os.close(fd)


def share_bytes(one: Path, other: Path) -> bool:
    """Whether two files lie on the same blocks of the medium from end to end: one inode, or a reflink none of whose blocks was written since."""
    try:
        first, second = one.stat(), other.stat()
    except OSError:
        return False
    if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
        return True
    if first.st_dev != second.st_dev or first.st_size != second.st_size or first.st_size == 0:
        return False
    here, there = extents(one), extents(other)
    return bool(here) and bool(there) and _blocks(here or []) == _blocks(there or [])


def overlap(one: Path, other: Path) -> bool:
    """Whether two files have any block of the medium in common."""
    try:
        first, second = one.stat(), other.stat()
    except OSError:
        return False
    if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino):
        return True
    here = [] if first.st_dev != second.st_dev else extents(one) or []
    there = sorted((extent.physical, extent.physical + extent.length) for extent in extents(other) or []) if here else []
    at = 0
    for start, end in sorted((extent.physical, extent.physical + extent.length) for extent in here):
        while at < len(there) and there[at][1] <= start:
            at += 1
        if at < len(there) and there[at][0] < end:
            return True
    return False


def _blocks(found: list[Extent]) -> list[tuple[int, int, int]]:
    """Neighbours joined: two files may cut the same blocks into other extents."""
    joined: list[tuple[int, int, int]] = []
    for one in found:
        if joined and (last := joined[-1])[0] + last[2] == one.start and last[1] + last[2] == one.physical:
            joined[-1] = (last[0], last[1], last[2] + one.length)
        else:
            joined.append((one.start, one.physical, one.length))
    return joined


def own_bytes(path: Path, allocated_bytes: int) -> int:
    """How many of *allocated_bytes* would be free if *path* went: all where nothing tells of sharing."""
    found = extents(path) if allocated_bytes else None
    if found is None:
        return allocated_bytes
    return max(0, allocated_bytes - sum(one.length for one in found if one.shared))
