"""How a file is written into a folder: proven pieces in, on to the medium, and read back from there before it gets its name."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steelyard.copies.base import ProvenReader, corrupt
from steelyard.copies.following import Follower
from steelyard.copies.judging import past_the_cache
from steelyard.direct import aligned_buffer
from steelyard.disk import has_a_head_to_move
from steelyard.errors import Range
from steelyard.manifest import FileEntry
from steelyard.pieces import MIB, Digests, check_pieces, digest_source, in_threads, merge_ranges
from steelyard.source import LocalFile
from steelyard.staging import Partial
from steelyard.watch import current_watch

WRITERS = 2
"""Pieces in flight while a file is brought in: a kill costs at most these again, 16 MiB."""
MOST_WRITERS = 8
"""From a store that is far away, where each range waits for an answer."""
FOLLOW_FROM_BYTES = 16 * MIB


def fill(partial: Partial, entry: FileEntry, reader: ProvenReader, who: str) -> int:
    """Write what is missing of *partial*, make it last, read it back; a piece that did not survive is written once more. Bytes written.

    :raises Rotten: :raises Corrupt: when the medium does not give back what was written.
    """
    with _following(partial, entry, reader) as follower:
        written = _write_pieces(partial, entry, reader, who, follower)
        partial.fsync()
        bad = follower.finish() if follower is not None else _read_back(partial, entry)
        digests = follower.digests if follower is not None else None
    if bad:
        partial.drop(bad)
        written += _write_pieces(partial, entry, reader, who, None)
        partial.fsync()
        bad, digests = _read_back(partial, entry), None
        if bad:
            partial.drop(bad)  # the next run must not go on with what is known to be wrong
            raise corrupt(partial.path, bad, f"{who} does not give back what was written; the medium is failing")
    if not reader.pieces_are_trusted:
        _prove_whole(partial, entry, digests)
    return written


@contextmanager
def _following(partial: Partial, entry: FileEntry, reader: ProvenReader) -> Iterator[Follower | None]:
    """Read back while writing, except where that makes a head jump, where the file has no place of its own yet, and where it isn't worth a thread."""
    if entry.size_bytes < FOLLOW_FROM_BYTES or not partial.reserved or has_a_head_to_move(partial.folder):
        yield None
        return
    follower = Follower(partial, entry, whole=not reader.pieces_are_trusted, stop=current_watch().stop)
    try:
        yield follower
    finally:
        follower.close()


def _write_pieces(partial: Partial, entry: FileEntry, reader: ProvenReader, who: str, follower: Follower | None) -> int:
    have = partial.have()
    ranges = entry.ranges
    todo = [index for index, (start, end) in enumerate(ranges) if not any(lo <= start and end <= hi for lo, hi in have)]
    watch = current_watch()
    written: list[int] = []
    if follower is not None:
        for index in set(range(len(ranges))) - set(todo):
            follower.written(index)
    with watch.job(f"{entry.path} → {who}", entry.size_bytes) as job:
        watch.advance(job, entry.size_bytes - sum(ranges[i][1] - ranges[i][0] for i in todo))
        local = threading.local()

        def copy(index: int) -> None:
            if not hasattr(local, "buffer"):
                local.buffer = aligned_buffer(min(entry.piece_bytes, entry.size_bytes))
            view = reader.read_piece(index, local.buffer)
            start = ranges[index][0]
            partial.put(start, view)
            # The medium begins now, and not at the fsync: reading the next pieces and writing this one overlap.
            partial.start_writing(start, len(view))
            if follower is not None:
                follower.written(index)
            written.append(len(view))
            watch.advance(job, len(view))

        # In order where the file grows as it is written: what is put behind its end is first filled up with zeros there.
        far = max((getattr(source, "connections", 0) for source in reader.candidates.values()), default=0)
        in_threads(copy, todo, threads=max(WRITERS, min(far, MOST_WRITERS)) if partial.reserved else 1, stop=watch.stop)
    return sum(written)


def _read_back(partial: Partial, entry: FileEntry) -> list[Range]:
    """Read a written, fsynced file from the medium and judge every piece; the ranges that did not survive."""
    os.posix_fadvise(partial.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    watch = current_watch()
    with LocalFile(partial.path) as source, watch.job(f"read back {entry.path}", entry.size_bytes) as job:
        past_the_cache(source)
        on_bytes = functools.partial(watch.advance, job)
        found = check_pieces(source, entry.size_bytes, entry.piece_bytes, entry.pieces, stop=watch.stop, threads=1, on_bytes=on_bytes)
    return list(merge_ranges([*found.bad, *found.unreadable]))


def _prove_whole(partial: Partial, entry: FileEntry, digests: Digests | None) -> None:
    """The pieces came from somebody else's record (a replica's manifest): the file counts by what was agreed on, or not at all.

    :raises Corrupt: when the pieces hold but the whole does not: the record contradicts itself. The partial is gone then.
    """
    if digests is None:
        watch = current_watch()
        with LocalFile(partial.path) as source, watch.job(f"prove {entry.path}", entry.size_bytes) as job:
            digests = digest_source(source, stop=watch.stop, on_bytes=functools.partial(watch.advance, job), git=True)
    # A small file is agreed on by its git SHA-1 alone: a forged record could name any SHA-256 beside it.
    if digests.sha256 != entry.sha256 or (len(entry.etag) == 40 and digests.git_sha1 != entry.etag):
        partial.discard()
        raise corrupt(entry.path, [(0, entry.size_bytes)], "its pieces hold, but together they are not what was agreed on")


def keep_times(where: int | Path, reader: ProvenReader) -> None:
    """Give a file (open, or by path) the time and mode that it has where its bytes come from, as far as the file system keeps them."""
    seen = next((source.stat for source in reader.candidates.values() if isinstance(source, LocalFile)), None)
    if seen is None:
        return
    with contextlib.suppress(OSError):
        now = os.stat(where)  # noqa: PTH116 (it may be a descriptor)
        if now.st_mode & 0o777 != seen.st_mode & 0o777:
            os.chmod(where, seen.st_mode & 0o777)  # noqa: PTH101
    with contextlib.suppress(OSError):
        # FAT counts in steps of two seconds.
        if abs(now.st_mtime_ns - seen.st_mtime_ns) > 2 * 10**9 or isinstance(where, int):
            os.utime(where, ns=(seen.st_atime_ns, seen.st_mtime_ns))
