"""Mending a file where it lies: only its bad pieces are written, and the whole SHA-256 is proven before the first of them is.

The SHA-256 is the slow part (one core), so it starts beside the judging and keeps its state at every piece: when the judging has found the bad
pieces, it goes on from the first of them with the good bytes in their place.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from steelyard.copies.base import Finding, ProvenReader, corrupt, piece_holds
from steelyard.disk import errors_of, make_folder
from steelyard.errors import Range, SteelyardError, Stopped
from steelyard.manifest import FileEntry
from steelyard.pieces import MIB
from steelyard.quarantine import keep_ranges
from steelyard.source import ByteSource, LocalFile
from steelyard.watch import current_watch


class RunningSha:
    """The SHA-256 of a file, running ahead in a thread of its own; its state is kept at each piece, 112 bytes each.

    Use as a context manager: leaving it ends the thread. What it hashed is worth something only once `finish` has put the good bytes in.
    """

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self._path, self._entry = path, entry
        self._states = [hashlib.sha256()]
        self._enough = threading.Event()
        self._stop = current_watch().stop
        self._thread = threading.Thread(target=self._run, name="sha256-ahead", daemon=True)

    def _run(self) -> None:
        try:
            with LocalFile(self._path) as source:
                for start, end in self._entry.ranges:
                    state = self._states[-1].copy()
                    if not _hash_range(source, start, end, state, self._enough):
                        return
                    self._states.append(state)
        except SteelyardError:
            return  # an unreadable piece: finish() takes it from the spool

    def finish(self, source: ByteSource, good: dict[int, int], spool: IO[bytes]) -> str:
        """The SHA-256 of the file as it will be: *good* gives the offset in *spool* of each piece that is replaced. :raises Stopped:"""
        self._end()
        first = min([len(self._states) - 1, *good])
        state = self._states[first].copy()
        for index, (start, end) in enumerate(self._entry.ranges[first:], first):
            if self._stop.is_set():
                raise Stopped()
            if index in good:
                spool.seek(good[index])
                for at in range(start, end, MIB):
                    state.update(spool.read(min(MIB, end - at)))
            else:
                _hash_range(source, start, end, state, threading.Event())
        return state.hexdigest()

    def _end(self) -> None:
        self._enough.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()


def _hash_range(source: ByteSource, start: int, end: int, state: hashlib._Hash, enough: threading.Event) -> bool:
    """Feed a range to *state*; False when it was told to end or the file did. :raises Unreadable:"""
    buffer = memoryview(bytearray(MIB))
    at = start
    while at < end:
        part = buffer[: min(MIB, end - at)]
        if enough.is_set() or source.readinto(at, part) < len(part):
            return False
        state.update(part)
        at += len(part)
    return True


def mend_in_place(
    path: Path, ours: Path, entry: FileEntry, finding: Finding, reader: ProvenReader, running: RunningSha | None = None
) -> int:
    """Replace the bad pieces of the file at *path* and return how many bytes were moved.

    Everything is fetched into a spool and the file-to-be proven by its SHA-256 before the first byte is written; the bad bytes are kept below
    *ours*/quarantine. A kill in the middle leaves pieces that verify calls bad, and the next repair goes on.
    :raises Rotten: when a piece is good nowhere; the file is as it was. :raises Corrupt: when the pieces don't make up the SHA-256, or don't stay.
    """
    bad = [i for i, (start, end) in enumerate(entry.ranges) if any(start < hi and lo < end for lo, hi in finding.bad_ranges)]
    with errors_of(ours), tempfile.TemporaryFile(dir=make_folder(ours / "staging")) as spool, LocalFile(path) as source:
        buffer = memoryview(bytearray(min(entry.piece_bytes, max(entry.size_bytes, 1))))
        good: dict[int, int] = {}
        for index in bad:
            current_watch().check()
            good[index] = spool.tell()
            spool.write(reader.read_piece(index, buffer))
        moved = spool.tell()
        if (running or RunningSha(path, entry)).finish(source, good, spool) != entry.sha256:
            raise corrupt(path, [(0, entry.size_bytes)], "its pieces do not make up the SHA-256 that was agreed on; nothing was written")
        keep_ranges(ours / "quarantine", path, finding.bad_ranges, f"{finding.verdict}: {finding.why or 'digest differs'}")
        spool.seek(0)
        _overwrite(path, spool, [entry.ranges[index] for index in bad], entry.size_bytes)
    with LocalFile(path) as source:
        still = [entry.ranges[index] for index in bad if not piece_holds(source, entry, index)]
        if still or source.size_bytes != entry.size_bytes:
            raise corrupt(path, still, "the drive does not give back what was written; the medium is failing")
    return moved


def _overwrite(path: Path, spool: IO[bytes], ranges: list[Range], size_bytes: int) -> None:
    """Put the bytes of *spool* into *ranges* of the file, cut or grow it to its size, and make that last; the next read is from the medium."""
    with errors_of(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start, end in ranges:
                at = start
                while at < end:
                    view = memoryview(spool.read(min(MIB, end - at)))
                    while len(view):
                        done = os.pwrite(fd, view, at)
                        at, view = at + done, view[done:]
            if os.fstat(fd).st_size != size_bytes:
                os.ftruncate(fd, size_bytes)
            os.fsync(fd)
            for start, end in ranges:
                os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
