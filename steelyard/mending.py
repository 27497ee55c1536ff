"""Mending a file where it lies: only its bad pieces are written, and the whole SHA-256 is proven before the first of them is.

The SHA-256 is the slow part. Where its states were written down when the file arrived (sha256.py), it is proven on every core. Else it takes one core, so
it starts beside the judging and keeps its state at every piece: when the judging has found the bad pieces, it goes on from the first of them with
the good bytes in their place.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from steelyard.copies.base import Finding, ProvenReader, corrupt, piece_holds
from steelyard.direct import aligned_buffer, aligned_buffers
from steelyard.disk import errors_of, make_folder
from steelyard.errors import Range, SteelyardError, Stopped, Unreadable
from steelyard.manifest import FileEntry
from steelyard.pieces import MIB, default_threads, in_threads
from steelyard.quarantine import keep_ranges
from steelyard.sha256 import at_stretch, stretches
from steelyard.source import ByteSource, LocalFile
from steelyard.watch import current_watch

BLOCK_BYTES = 4 * MIB


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
                state = self._states[-1].copy()
                for view, whole in _blocks(source, self._entry.ranges, self._enough):
                    state.update(view)
                    if whole:
                        self._states.append(state)
                        state = state.copy()
        except SteelyardError:
            return  # an unreadable piece: finish() takes it from the spool

    def finish(self, source: ByteSource, good: dict[int, int], spool: IO[bytes]) -> str:
        """The SHA-256 of the file as it will be: *good* gives the offset in *spool* of each piece that is replaced. :raises Stopped:"""
        self._end()
        first = min([len(self._states) - 1, *good])
        state, at = self._states[first].copy(), first
        for index in [*sorted(index for index in good if index >= first), len(self._entry.ranges)]:
            for view, _ in _blocks(source, self._entry.ranges[at:index], self._stop):
                state.update(view)
            if self._stop.is_set():
                raise Stopped()
            if index in good:
                start, end = self._entry.ranges[index]
                spool.seek(good[index])
                for offset in range(start, end, MIB):
                    state.update(spool.read(min(MIB, end - offset)))
            at = index + 1
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


@dataclass(frozen=True)
class FileToBe:
    """*source* with the pieces of *good* in their place: piece index -> its offset in *spool*. A ByteSource for several threads at once."""

    source: ByteSource
    entry: FileEntry
    good: Mapping[int, int]
    spool: IO[bytes]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def size_bytes(self) -> int:
        return self.entry.size_bytes

    def readinto(self, offset: int, buffer: memoryview) -> int:
        done, step = 0, self.entry.piece_bytes
        while done < len(buffer) and (at := offset + done) < self.size_bytes:
            index = at // step
            part = buffer[done : done + min((index + 1) * step, self.size_bytes) - at]
            there = self.good.get(index)
            got = self.source.readinto(at, part) if there is None else os.preadv(self.spool.fileno(), [part], there + at - index * step)
            done += got
            if got < len(part):
                break
        return done

    def close(self) -> None:
        """Nothing of its own is held."""


def proves(source: ByteSource, entry: FileEntry, *, threads: int = 0) -> bool:
    """Whether the whole of *source* has the SHA-256 of *entry*, on *threads* threads (0: one a core). False also where states are missing or wrong.

    :raises Unreadable, Stopped:
    """
    watch, wrong = current_watch(), threading.Event()
    parts = stretches(entry.size_bytes, entry.sha256_states)

    def prove(index: int) -> None:
        (start, end), state = parts[index], at_stretch(index, entry.sha256_states)
        buffer = aligned_buffer(MIB)
        for at in range(start, end, MIB):
            view = buffer[: min(MIB, end - at)]
            if watch.stop.is_set():
                raise Stopped()
            if wrong.is_set() or source.readinto(at, view) < len(view):
                wrong.set()
                return
            state.update(view)
        last = index == len(parts) - 1
        if (state.hexdigest() if last else state.state().hex()) != (entry.sha256 if last else entry.sha256_states[index]):
            wrong.set()

    in_threads(prove, range(len(parts)), threads=threads or default_threads(), stop=watch.stop)
    return bool(parts) and not wrong.is_set()


def _is_whole(to_be: FileToBe, path: Path, running: RunningSha | None) -> bool:
    entry = to_be.entry
    if running is None and proves(to_be, entry):
        return True
    # Without states, or with wrong ones, which say nothing of the bytes: all of it in order.
    return (running or RunningSha(path, entry)).finish(to_be.source, dict(to_be.good), to_be.spool) == entry.sha256


def _blocks(source: ByteSource, ranges: Sequence[Range], enough: threading.Event) -> Iterator[tuple[memoryview, bool]]:
    """The bytes of *ranges* in order, each block good until the next one is asked for, and whether a range ends with it.

    The next block is read while this one is hashed: the digest is the slow part, and a copy out of the page cache is a fifth of it. Ends early
    when *enough* is set, or where the file does. :raises Unreadable:
    """
    todo = [(at, min(BLOCK_BYTES, end - at), at + BLOCK_BYTES >= end) for start, end in ranges for at in range(start, end, BLOCK_BYTES)]
    ring = aligned_buffers(min(3, len(todo)), BLOCK_BYTES) if todo else []

    def read(number: int) -> tuple[memoryview, bool]:
        at, length, _ = todo[number]
        view = ring[number % len(ring)][:length]
        return view, source.readinto(at, view) == length

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        coming = reader.submit(read, 0) if todo else None
        for number in range(len(todo)):
            assert coming is not None
            view, there = coming.result()
            if enough.is_set() or not there:
                return
            coming = reader.submit(read, number + 1) if number + 1 < len(todo) else None
            yield view, todo[number][2]


def mend_in_place(
    path: Path, ours: Path, entry: FileEntry, finding: Finding, reader: ProvenReader, running: RunningSha | None = None
) -> int:
    """Replace the bad pieces of the file at *path* and return how many bytes were moved.

    Everything is fetched into a spool and the file-to-be proven by its SHA-256 before the first byte is written; the bad bytes are kept below
    *ours*/quarantine. A kill in the middle leaves pieces that verify calls bad, and the next repair goes on.
    :raises Rotten: when a piece is good nowhere; the file is as it was. :raises Corrupt: when the pieces don't make up the SHA-256.
    :raises Unreadable: when the medium gives an error, or does not give back what was written.
    """
    bad = [i for i, (start, end) in enumerate(entry.ranges) if any(start < hi and lo < end for lo, hi in finding.bad_ranges)]
    with errors_of(ours), tempfile.TemporaryFile(dir=make_folder(ours / "staging")) as spool, LocalFile(path) as source:
        buffer = aligned_buffer(min(entry.piece_bytes, entry.size_bytes))
        good: dict[int, int] = {}
        for index in bad:
            current_watch().check()
            good[index] = spool.tell()
            spool.write(reader.read_piece(index, buffer))
        moved = spool.tell()
        spool.flush()
        if not _is_whole(FileToBe(source, entry, good, spool), path, running):
            raise corrupt(path, [(0, entry.size_bytes)], "its pieces do not make up the SHA-256 that was agreed on; nothing was written")
        keep_ranges(ours / "quarantine", path, finding.bad_ranges, f"{finding.verdict}: {finding.why or 'digest differs'}")
        spool.seek(0)
        _overwrite(path, spool, [entry.ranges[index] for index in bad], entry.size_bytes)
    with LocalFile(path) as source:
        still = [entry.ranges[index] for index in bad if not piece_holds(source, entry, index)]
        if still or source.size_bytes != entry.size_bytes:
            why = "the drive does not give back what was written; the medium is failing"
            raise Unreadable(path=str(path), why=why, ranges=tuple(still))
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
