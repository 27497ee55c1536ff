"""Reading back behind the writer: the head of a file is proven on the medium while its tail is still being written."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from blake3 import blake3

from steelyard.direct import aligned_buffer
from steelyard.disk import takes_direct
from steelyard.errors import Range, Stopped, Unreadable
from steelyard.manifest import FileEntry
from steelyard.pieces import Arrival, Digests, merge_ranges
from steelyard.source import LocalFile
from steelyard.staging import Partial


class Follower:
    """A thread that reads each piece of *partial* from the medium once it was written, in order.

    *whole*: also take the digests of the whole file, for a record that is not our own. Whoever uses it fsyncs before it believes finish().
    """

    def __init__(self, partial: Partial, entry: FileEntry, *, whole: bool, stop: threading.Event) -> None:
        self._partial = partial
        self._entry = entry
        self._stop = stop
        self._written: set[int] = set()
        self._change = threading.Condition()
        self._ended = False
        self._bad: list[Range] = []
        self._error: BaseException | None = None
        self._arrival = Arrival(entry.size_bytes, git=True, ahead=4, piece_bytes=entry.piece_bytes) if whole else None
        self.digests: Digests | None = None
        self._thread = threading.Thread(target=self._run, name="read back", daemon=True)
        self._thread.start()

    def written(self, index: int) -> None:
        """Piece *index* is in place. From any thread."""
        with self._change:
            self._written.add(index)
            self._change.notify()

    def finish(self) -> list[Range]:
        """Wait for the last piece; the ranges that did not survive. *digests* are there then, where the whole was asked for."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return list(merge_ranges(self._bad))

    def close(self) -> None:
        """End the thread, finished or not."""
        with self._change:
            self._ended = True
            self._change.notify()
        self._thread.join()
        if self._arrival is not None:
            self._arrival.close()

    def _run(self) -> None:
        try:
            with LocalFile(self._partial.path) as source:
                if takes_direct(self._partial.path):
                    source.go_direct()
                # SHA-256 runs behind in a thread of its own: it must have buffers that nobody writes into again.
                buffers = self._arrival.buffers() if self._arrival is not None else itertools.repeat(aligned_buffer(source.read_bytes))
                for index, (start, end) in enumerate(self._entry.ranges):
                    if not self._wait_for(index):
                        return
                    # A range that the kernel can't settle would be read from memory: it is judged as bad, and so read again after the fsync.
                    if not self._partial.settle(start, end - start) or not self._holds(source, index, start, end, buffers):
                        self._bad.append((start, end))
            if self._arrival is not None:
                self.digests = self._arrival.finish()
        except BaseException as error:  # noqa: BLE001 (raised again by finish, in the caller's thread)
            self._error = error

    def _wait_for(self, index: int) -> bool:
        with self._change:
            while index not in self._written and not self._ended:
                self._change.wait(0.5)
                if self._stop.is_set():
                    raise Stopped()
        return not self._ended

    def _holds(self, source: LocalFile, index: int, start: int, end: int, buffers: Iterator[memoryview]) -> bool:
        digest = blake3()
        at = start
        while at < end:
            if self._stop.is_set():
                raise Stopped()
            buffer = next(buffers)
            view = buffer[: min(len(buffer), end - at)]
            try:
                got = source.readinto(at, view)
            except Unreadable:
                got = 0
            digest.update(view[:got])
            if self._arrival is not None:
                self._arrival.feed(view)
            at += len(view)
        return digest.hexdigest() == self._entry.pieces[index]
