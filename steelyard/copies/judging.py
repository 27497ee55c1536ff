"""How a file in a folder is judged: by its state against the last proof, or by its pieces."""

from __future__ import annotations

import os
from functools import partial

from steelyard.copies.base import Finding
from steelyard.direct import DIRECT_FROM_BYTES
from steelyard.disk import gb, takes_direct
from steelyard.errors import Range
from steelyard.in_order import check_in_order
from steelyard.manifest import FileEntry
from steelyard.pieces import check_pieces, default_threads, merge_ranges
from steelyard.source import LocalFile
from steelyard.states import State, state_of
from steelyard.watch import current_watch

COLD_THREADS = 3


def stat_of(seen: os.stat_result) -> str:
    """The state of a file as the history keeps it."""
    return as_text(state_of(seen))


def as_text(state: State) -> str:
    return ":".join(map(str, state))


def by_state(source: LocalFile, entry: FileEntry, recorded: Finding | None) -> Finding:
    """Size, mtime and inode against the last look. Never better than that look's verdict."""
    now = stat_of(source.stat)
    if source.size_bytes != entry.size_bytes:
        return Finding("corrupt", _size_ranges(entry, source.size_bytes), "stat", _size_why(entry, source.size_bytes), stat=now)
    if recorded is None or recorded.stat != now:
        why = "never proven here" if recorded is None else "its time or inode changed since it was last proven"
        return Finding("unverified", proof="stat", why=why, stat=now)
    return Finding(recorded.verdict, recorded.bad_ranges, "stat", "size, mtime and inode are as at the last proof", stat=now)


def by_pieces(source: LocalFile, entry: FileEntry, *, cold: bool, threads: int = 0) -> Finding:
    watch = current_watch()
    if cold:
        source.forget_cache()
    in_memory = not cold and is_cached(source)
    direct = not in_memory and past_the_cache(source)
    with watch.job(f"verify {entry.path}", entry.size_bytes) as job:
        what = (source, entry.size_bytes, entry.piece_bytes, entry.pieces)
        on_bytes = partial(watch.advance, job)
        if direct:
            found = check_in_order(*what, stop=watch.stop, on_bytes=on_bytes)
        else:
            # From memory every core helps. From a cold medium the kernel reads ahead in order, and a few threads take turns at hashing.
            count = (threads or default_threads()) if in_memory else COLD_THREADS
            found = check_pieces(*what, stop=watch.stop, threads=count, read_ahead=not in_memory, on_bytes=on_bytes)
    now = os.fstat(source.fileno())
    stat = stat_of(now)
    if stat != stat_of(source.stat):
        return Finding("unverified", proof="pieces", why="it changed while it was being read", bytes_read=entry.size_bytes, stat=stat)
    how = f"pieces ({'from the medium' if cold else 'in memory' if in_memory else 'one reader'})"
    bad: list[Range] = list(found.bad)
    if source.size_bytes > entry.size_bytes:
        bad.append((entry.size_bytes, source.size_bytes))
    if bad:
        ranges = merge_ranges([*bad, *found.unreadable])
        return Finding("corrupt", ranges, how, _size_why(entry, source.size_bytes) or _range_why(ranges), entry.size_bytes, stat)
    if found.unreadable:
        return Finding("unreadable", found.unreadable, how, found.why_unreadable, entry.size_bytes, stat)
    return Finding("ok", proof=how, bytes_read=entry.size_bytes, stat=stat)


def _size_ranges(entry: FileEntry, size: int) -> tuple[Range, ...]:
    if size > entry.size_bytes:
        return ((entry.size_bytes, size),)
    return ((size // entry.piece_bytes * entry.piece_bytes, entry.size_bytes),)


def _size_why(entry: FileEntry, size: int) -> str:
    if size == entry.size_bytes:
        return ""
    return f"it has {size} bytes, {entry.size_bytes} are right"


def _range_why(ranges: tuple[Range, ...]) -> str:
    total = sum(end - start for start, end in ranges)
    return f"{gb(total)} in {len(ranges)} range{'s' if len(ranges) > 1 else ''} differ from the recorded digests"


def past_the_cache(source: LocalFile) -> bool:
    """Read a large file that does not lie in memory from the medium itself, where that is quicker; True when it will be."""
    return source.size_bytes >= DIRECT_FROM_BYTES and takes_direct(source.path) and source.go_direct()


def is_cached(source: LocalFile) -> bool:
    """Whether the file lies in the page cache, by asking for single bytes that must not wait for the medium."""
    probes, there = 16, 0
    for index in range(probes):
        try:
            os.preadv(source.fileno(), [bytearray(1)], source.size_bytes * index // probes, os.RWF_NOWAIT)
            there += 1
        except BlockingIOError:
            pass
        except OSError:
            return True  # the file system can't tell (FUSE, old kernels); treat it as memory
    return there > probes * 3 // 4
