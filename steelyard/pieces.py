"""One pass over bytes: many digests, many cores, bounded memory, stoppable.

A piece is a fixed-size range of a file with a BLAKE3 digest. SHA-256 is the trust (the Hub publishes it), BLAKE3 is every later look
(12 GB/s on two cores where SHA-256 makes 1.8), CRC-64/NVME is what S3 returns for a whole object. All three come from one read.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from steelyard.direct import aligned_buffer, aligned_buffers
from steelyard.errors import Range, Stopped, Unreadable
from steelyard.sha256 import RecordingSha256
from steelyard.source import READ_BYTES, ByteSource

MIB = 1 << 20
PIECE_BYTES = 8 * MIB
MAX_PIECES = 10_000
PIECES_AHEAD = 3
"""How far the kernel is asked to read ahead of a cold file's hashing."""

T = TypeVar("T")


def piece_size(size_bytes: int) -> int:
    """The piece size for a file: 8 MiB, doubled until there are no more than 10,000 (S3 takes no more parts than that)."""
    size = PIECE_BYTES
    while size * MAX_PIECES < size_bytes:
        size *= 2
    return size


def piece_ranges(size_bytes: int, piece_bytes: int) -> list[Range]:
    """Half-open byte ranges of the pieces; an empty file has none."""
    return [(start, min(start + piece_bytes, size_bytes)) for start in range(0, size_bytes, piece_bytes)]


def merge_ranges(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, with neighbours and overlaps joined."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)


def on_piece_borders(ranges: Iterable[Range], size_bytes: int, piece_bytes: int) -> tuple[Range, ...]:
    """The ranges of the pieces that *ranges* touch: what is told of a file begins where a piece does and ends with one or with the file.

    Bytes beyond *size_bytes* belong to the piece that they stand in, up to the last of them.
    """
    whole = [
        (start // piece_bytes * piece_bytes, max(end, min(-(-end // piece_bytes) * piece_bytes, size_bytes)))
        for start, end in ranges
        if start < end
    ]
    return merge_ranges(whole)


def default_threads() -> int:
    """Hashing threads: the cores this process may use, at most 8 (a disk is full long before that)."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Digests:
    """What one pass over a whole file gives. All hex; crc64nvme is 16 digits, as S3's base64 of 8 bytes big-endian."""

    size_bytes: int
    sha256: str
    crc64nvme: str
    git_sha1: str
    piece_bytes: int
    pieces: tuple[str, ...]
    sha256_states: tuple[str, ...] = ()
    """The SHA-256's state at each stretch (`sha256.STRETCH_BYTES`), so that later it is proven on every core."""


class Arrival:
    """Digests of a file whose bytes are fed in order: SHA-256, git SHA-1, CRC-64/NVME and pieces.

    SHA-256 runs in a thread of its own beside the others (hashlib and blake3 release the GIL), at most *ahead* buffers behind.
    Feed only buffers that nobody changes afterwards.
    """

    def __init__(self, size_bytes: int, *, git: bool = False, ahead: int = 8, piece_bytes: int = 0) -> None:
        from awscrt.checksums import crc64nvme

        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes or piece_size(size_bytes)
        self._ahead = ahead
        self._crc_of = crc64nvme
        self._crc = 0
        self._fed = 0
        self._sha = RecordingSha256(size_bytes)
        # git's blob id covers a header with the size; it is what the Hub publishes for small files.
        self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False) if git else None
        self._piece = blake3()
        self._pieces: list[str] = []
        self._in_piece = 0
        self._queue: queue.Queue[tuple[memoryview, Callable[[], None] | None] | None] = queue.Queue(ahead)
        self._thread: threading.Thread | None = None

    def buffers(self, size_bytes: int = MIB) -> Iterator[memoryview]:
        """Buffers to read into and feed, each exactly once, for ever; reused, because fresh ones cost a page fault for every 4 KiB."""
        # When feed() returns, at most *ahead* buffers wait and one is being digested: the one after those is free.
        return itertools.cycle(aligned_buffers(self._ahead + 2, size_bytes))

    def feed(self, data: memoryview | bytes, done: Callable[[], None] | None = None) -> None:
        """Digest *data* as the next bytes. *done* is called, from either thread, when *data* may be changed again."""
        view = rest = memoryview(data)
        if self._git is not None:
            self._git.update(view)
        self._crc = self._crc_of(view, self._crc)
        self._fed += len(view)
        while len(rest):
            take = min(len(rest), self.piece_bytes - self._in_piece)
            self._piece.update(rest[:take])
            self._in_piece += take
            if self._in_piece == self.piece_bytes:
                self._end_piece()
            rest = rest[take:]
        # Last: with it the other thread may let go of the bytes.
        if len(view) < MIB and self._thread is None:
            self._sha.update(view)
            if done is not None:
                done()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="sha256", daemon=True)
            self._thread.start()
        self._queue.put((view, done))

    def _end_piece(self) -> None:
        self._pieces.append(self._piece.hexdigest())
        self._piece = blake3()
        self._in_piece = 0

    def _follow(self) -> None:
        while (item := self._queue.get()) is not None:
            data, done = item
            self._sha.update(data)
            if done is not None:
                done()

    def close(self) -> None:
        """End the helper thread; needed only where finish() is not reached."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def finish(self) -> Digests:
        self.close()
        if self._in_piece:
            self._end_piece()
        return Digests(
            size_bytes=self._fed,
            sha256=self._sha.hexdigest(),
            crc64nvme=f"{self._crc:016x}",
            git_sha1=self._git.hexdigest() if self._git is not None else "",
            piece_bytes=self.piece_bytes,
            pieces=tuple(self._pieces),
            sha256_states=tuple(self._sha.states),
        )


def digest_source(
    source: ByteSource, *, stop: threading.Event, on_bytes: Callable[[int], None] = lambda _: None, git: bool = False, piece_bytes: int = 0
) -> Digests:
    """Read *source* once and return its SHA-256, its CRC-64/NVME and a BLAKE3 digest for every piece.

    Memory stays below 16 MiB whatever the size; *stop* is seen within one MiB.
    :raises Unreadable: with the byte range, when the medium gives an error; never a partial result.
    """
    arrival = Arrival(source.size_bytes, git=git, ahead=4, piece_bytes=piece_bytes)
    buffers = arrival.buffers()
    try:
        offset = 0
        while offset < source.size_bytes:
            if stop.is_set():
                raise Stopped()
            buffer = next(buffers)[: min(MIB, source.size_bytes - offset)]
            got = source.readinto(offset, buffer)
            if got < len(buffer):
                raise Unreadable(path=source.name, why="it was cut short while being read", ranges=((offset + got, source.size_bytes),))
            arrival.feed(buffer)
            on_bytes(got)
            offset += got
        return arrival.finish()
    finally:
        arrival.close()


def digest_range(source: ByteSource, start: int, end: int, buffer: memoryview) -> tuple[str, int]:
    """BLAKE3 of one range, and how many bytes were there (fewer when the file ends before *end*)."""
    digest = blake3()
    offset = start
    while offset < end:
        part = buffer[: min(len(buffer), end - offset)]
        got = source.readinto(offset, part)
        digest.update(part[:got])
        offset += got
        if got < len(part):
            break
    return digest.hexdigest(), offset - start


@dataclass(frozen=True)
class PieceFindings:
    """Which pieces of a file are not what they should be: half-open, piece-aligned ranges within the expected size."""

    bad: tuple[Range, ...]
    unreadable: tuple[Range, ...]
    why_unreadable: str = ""

    @property
    def whole(self) -> bool:
        return not self.bad and not self.unreadable


def check_pieces(
    source: ByteSource,
    size_bytes: int,
    piece_bytes: int,
    pieces: Sequence[str],
    *,
    stop: threading.Event,
    threads: int = 0,
    read_ahead: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> PieceFindings:
    """Judge every piece of *source* against its recorded digest, on *threads* threads (0: one a core).

    An unreadable piece is a finding, not an error; the rest still gets judged. A source shorter than *size_bytes* has bad pieces at its end.
    """
    bad: list[Range] = []
    unreadable: list[Range] = []
    reasons: list[str] = []
    ranges = piece_ranges(size_bytes, piece_bytes)

    def look(index: int) -> None:
        buffer = _thread_buffer(min(getattr(source, "read_bytes", READ_BYTES), size_bytes))
        start, end = ranges[index]
        if read_ahead and (ahead := getattr(source, "read_ahead", None)) is not None:
            ahead(start + PIECES_AHEAD * piece_bytes, piece_bytes)
        try:
            found, _ = digest_range(source, start, end, buffer)
        except Unreadable as error:
            unreadable.append((start, end))
            reasons.append(str(error.facts.get("why", error)))
        else:
            if found != pieces[index]:
                bad.append((start, end))
        on_bytes(end - start)

    in_threads(look, range(len(ranges)), threads=threads or default_threads(), stop=stop)
    return PieceFindings(merge_ranges(bad), merge_ranges(unreadable), reasons[0] if reasons else "")


_local = threading.local()


def _thread_buffer(size: int) -> memoryview:
    buffer = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) != size:
        buffer = _local.buffer = aligned_buffer(size)
    return buffer


def in_threads(work: Callable[[T], None], items: Iterable[T], *, threads: int, stop: threading.Event) -> None:
    """Run *work* over *items* in order of need on *threads* threads; the first error ends all of it.

    The calling thread only waits, so a cancel or Ctrl-C reaches it at once; the workers then stop after the item they are at.
    :raises Stopped: when *stop* is set before the end.
    """
    ended = threading.Event()
    lock = threading.Lock()
    pending: Iterator[T] = iter(items)

    def loop() -> None:
        while not ended.is_set():
            if stop.is_set():
                raise Stopped()
            with lock:
                try:
                    item = next(pending)
                except StopIteration:
                    return
            try:
                work(item)
            except BaseException:
                ended.set()
                raise

    with pool(threads, ended) as executor:
        finish([executor.submit(loop) for _ in range(threads)])


@contextmanager
def pool(threads: int, ended: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A thread pool whose workers are told to end (*ended*) whatever ends the block, a cancel included."""
    executor = ThreadPoolExecutor(threads, thread_name_prefix="steelyard")
    try:
        yield executor
    finally:
        ended.set()
        executor.shutdown(wait=True, cancel_futures=True)


def finish(futures: Sequence[Future[None]]) -> None:
    """Wait for all, or for the first error, and raise it."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
