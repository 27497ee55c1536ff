"""The missing ranges of one file over one line: several connections at once, each writing journaled blocks in place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from steelyard.errors import Range, Stopped
from steelyard.line import Address, Line
from steelyard.lock import LockedFile
from steelyard.pieces import MIB
from steelyard.staging import BLOCK_BYTES, Partial
from steelyard.stream import Stream
from steelyard.watch import Job, Watch
from steelyard.weather import CONDITION, Patience, Trouble

log = logging.getLogger("steelyard.fetch")

SPAN_BYTES = 32 * MIB
"""The most that one request asks for: long enough that its round trip does not count."""
LEAST_SPAN_BYTES = 4 * MIB
BLOCK_S = 2.0
"""On a slow line a block is written and journaled after this time, however little it is: a kill costs seconds, not megabytes."""
IGNORED_RANGES_ALLOWED = 2
"""How often a server may answer a range with the whole file before it is believed that it knows no ranges."""


class Transfer:
    """One line's try at a file. The first error ends every connection; what has arrived stays in the partial."""

    def __init__(self, line: Line, file: LockedFile, partial: Partial, *, patience_s: float, job: Job, watch: Watch) -> None:
        self.line, self.file, self.partial = line, file, partial
        self.patience = Patience(patience_s)
        self.received_bytes = 0
        self._job, self._watch = job, watch
        self._retries_before = job.retries
        self._lock = threading.Lock()
        self._todo: list[Range] = []
        self._left_bytes = 0
        self._connections = 1
        self._ignored = 0
        self._takes_whole = False
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self, executor: ThreadPoolExecutor, connections: int) -> None:
        """Fetch until nothing is missing. :raises Trouble: when patience is at its end. :raises SteelyardError:"""
        while missing := self.partial.missing():
            self._todo = list(reversed(missing))
            self._left_bytes = sum(end - start for start, end in missing)
            self._connections = max(1, min(connections, -(-self._left_bytes // LEAST_SPAN_BYTES)))
            self.patience.connections = self._connections
            self._takes_whole = False
            futures = [executor.submit(self._connection) for _ in range(self._connections)]
            try:
                wait(futures)
            except BaseException:
                # Ctrl-C reaches the waiting thread only.
                self._ended.set()
                wait(futures)
                raise
            if self._error is not None:
                raise self._error

    # --- sharing the work out

    def _take(self) -> Range | None:
        """The next range from the front; shorter at the start, where the digests wait for it, and at the end, so that all end together."""
        with self._lock:
            if not self._todo:
                return None
            start, end = self._todo.pop()
            fair = self._left_bytes // (2 * self._connections)
            most = LEAST_SPAN_BYTES if start < SPAN_BYTES else min(SPAN_BYTES, max(LEAST_SPAN_BYTES, fair))
            # A range ends where a block does: blocks of full size are what the journal is made for.
            cut = min(end, max((start + most) // BLOCK_BYTES, start // BLOCK_BYTES + 1) * BLOCK_BYTES)
            if cut < end:
                self._todo.append((cut, end))
            self._left_bytes -= cut - start
            return start, cut

    def _take_over(self) -> bool:
        """Where the server knows no ranges one connection takes the whole file, and the others leave."""
        with self._lock:
            if self._takes_whole:
                return False
            self._takes_whole = True
            self._todo.clear()
            return True

    # --- one connection

    def _connection(self) -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        try:
            while (span := self._take()) is not None and self._bring(*span, buffer):
                self.partial.start_writing(span[0], span[1] - span[0])
        except BaseException as error:  # noqa: BLE001 - run() raises it once every connection has ended
            with self._lock:
                if self._error is None or isinstance(self._error, Stopped):
                    self._error = error
            self._ended.set()

    def _bring(self, at: int, end: int, buffer: memoryview) -> bool:
        """Bring one range; False when another connection has taken over the whole file. :raises Trouble: when patience is at its end."""
        stale: Address | None = None
        while at < end:
            self._check()
            try:
                address = self.line.address(self.file, stale)
                with self.line.stream(self.file, at, end, address) as stream:
                    if stream.ignored_range:
                        if not self._believe_no_ranges():
                            return False
                        end = self.file.size_bytes
                        stream.end = end
                    self._pour(stream, at, buffer)
                at = end
            except Trouble as trouble:
                at = self._reached(at, end)
                if trouble.reaction.fresh_address and trouble.address:
                    stale = address
                log.info("%s at %d: %s", self.file.path, at, trouble)
                goes_on = self.patience.endure(trouble, self._watch)
                self._job.retries = self._retries_before + self.patience.retries
                if not goes_on:
                    raise
        return True

    def _believe_no_ranges(self) -> bool:
        """:raises Trouble: the first times, when another address may know better."""
        with self._lock:
            self._ignored += 1
            once_more = self._ignored <= IGNORED_RANGES_ALLOWED
        if once_more:
            raise Trouble(CONDITION["ignores-range"])
        return self._take_over()

    def _pour(self, stream: Stream, at: int, buffer: memoryview) -> None:
        """Write what the stream brings from *at* on, in journaled blocks; what comes before *at* is passed over."""
        from awscrt.checksums import crc64nvme

        while stream.at < at:
            self._count(stream.readinto(buffer[: min(len(buffer), at - stream.at)]), new=False)
            self._check()
        while stream.at < stream.end:
            # One block fills the buffer, in as many reads as the line wants, and is written in one go.
            start, filled = stream.at, 0
            block = buffer[: min(BLOCK_BYTES - start % BLOCK_BYTES, stream.end - start)]
            try:
                until = time.monotonic() + BLOCK_S
                while filled < len(block) and time.monotonic() < until:
                    got = stream.readinto(block[filled:])
                    filled += got
                    self._count(got, new=True)
                    self._check()
            finally:
                # What a broken connection brought is worth keeping too.
                if filled:
                    self.partial.write(start, block[:filled])
                    self.partial.record(start, filled, crc64nvme(block[:filled]))

    def _count(self, got: int, *, new: bool) -> None:
        with self._lock:
            self.received_bytes += got
        if new:
            self.patience.progress(got)
            self._watch.advance(self._job, got)

    def _check(self) -> None:
        if self._ended.is_set() or self._watch.stop.is_set():
            raise Stopped()

    def _reached(self, start: int, end: int) -> int:
        """How far the range from *start* is there."""
        for lo, hi in self.partial.have():
            if lo <= start < hi:
                return min(hi, end)
        return start


def missing_bytes(missing: Sequence[Range]) -> int:
    return sum(end - start for start, end in missing)
