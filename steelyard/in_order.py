"""Pieces of a large file read past the page cache: block after block in the file's order, several on their way at once.

A medium gives most when it is asked for what comes next, and when the next question is there before the last answer. Threads that each take a piece
of their own ask all over the place instead; on a disk that turns, every question is then a move of its arm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from blake3 import blake3

from steelyard.direct import aligned_buffers
from steelyard.errors import Range, Stopped, Unreadable
from steelyard.pieces import PieceFindings, in_threads, merge_ranges, piece_ranges
from steelyard.source import DIRECT_READ_BYTES, ByteSource

READERS = 4
SPARE = 6
"""Blocks that may wait for an earlier one of their piece while the readers go on: ten of 4 MiB in all, whatever the size of a piece."""


class _Piece:
    """A piece whose blocks arrive in any order and are digested in theirs, by one thread at a time."""

    def __init__(self, start: int, end: int) -> None:
        self.at, self.end = start, end
        self.digest = blake3()
        self.waiting: dict[int, tuple[memoryview, int]] = {}
        self.busy = False
        self.why_unreadable = ""


class _Stream:
    def __init__(self, source: ByteSource, ranges: Sequence[Range], judge: Callable[[int, str, str], None], stop: threading.Event) -> None:
        self._source, self._judge, self._stop = source, judge, stop
        self._moved = threading.Condition()
        self._spare = aligned_buffers(READERS + SPARE, DIRECT_READ_BYTES)
        self._pieces = {index: _Piece(start, end) for index, (start, end) in enumerate(ranges)}
        self._todo = ((index, at, min(at + DIRECT_READ_BYTES, end)) for index, (start, end) in enumerate(ranges)
                      for at in range(start, end, DIRECT_READ_BYTES))  # fmt: skip
        self._ended = False

    def read(self, on_bytes: Callable[[int], None]) -> None:
        """What one thread does: take the next block, read it, digest what is due, until nothing is left."""
        try:
            while (taken := self._take()) is not None:
                (index, start, end), buffer = taken
                piece, got = self._pieces[index], 0
                try:
                    got = self._source.readinto(start, buffer[: end - start])
                except Unreadable as error:
                    piece.why_unreadable = str(error.facts.get("why", error))
                self._arrived(index, piece, start, buffer, got)
                on_bytes(end - start)
        except BaseException:
            with self._moved:
                self._ended = True
                self._moved.notify_all()
            raise

    def _take(self) -> tuple[tuple[int, int, int], memoryview] | None:
        with self._moved:
            # Whoever has a block has a buffer: the earliest one under way always arrives, and lets go of those that wait for it.
            while not self._spare and not self._ended:
                self._moved.wait(0.5)
            if self._stop.is_set():
                raise Stopped()
            block = None if self._ended else next(self._todo, None)
            return None if block is None else (block, self._spare.pop())

    def _arrived(self, index: int, piece: _Piece, start: int, buffer: memoryview, got: int) -> None:
        with self._moved:
            piece.waiting[start] = buffer, got
            if piece.busy:
                return
            piece.busy = True
        while True:
            with self._moved:
                due = piece.waiting.pop(piece.at, None)
                if due is None:
                    piece.busy = False
                    return
            piece.digest.update(due[0][: due[1]])
            with self._moved:
                self._spare.append(due[0])
                self._moved.notify()
                piece.at = min(piece.at + DIRECT_READ_BYTES, piece.end)
                if piece.at == piece.end:
                    del self._pieces[index]
            if piece.at == piece.end:
                self._judge(index, piece.digest.hexdigest(), piece.why_unreadable)
                return


def check_in_order(
    source: ByteSource,
    size_bytes: int,
    piece_bytes: int,
    pieces: Sequence[str],
    *,
    stop: threading.Event,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> PieceFindings:
    """As pieces.check_pieces, for a source that goes past the page cache. Memory: 40 MiB."""
    bad: list[Range] = []
    unreadable: list[Range] = []
    reasons: list[str] = []
    ranges = piece_ranges(size_bytes, piece_bytes)

    def judge(index: int, found: str, why_unreadable: str) -> None:
        if why_unreadable:
            unreadable.append(ranges[index])
            reasons.append(why_unreadable)
        elif found != pieces[index]:
            bad.append(ranges[index])

    stream = _Stream(source, ranges, judge, stop)
    in_threads(lambda _: stream.read(on_bytes), range(READERS), threads=READERS, stop=stop)
    return PieceFindings(merge_ranges(bad), merge_ranges(unreadable), reasons[0] if reasons else "")
