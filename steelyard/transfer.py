"""The missing ranges of one file over one line: several connections at once, each writing journaled blocks in place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from steelyard.errors import Range, Stopped
from steelyard.hot import HotBlocks
from steelyard.line import Address, Line
from steelyard.lock import LockedFile
from steelyard.pieces import MIB
from steelyard.second import SecondCopy
from steelyard.staging import BLOCK_BYTES, Partial
from steelyard.stream import Stream
from steelyard.watch import Job, Watch
from steelyard.weather import CONDITION, Patience, Trouble

log = logging.getLogger("steelyard.fetch")

SPAN_BYTES = 32 * MIB
"""The most that one request asks for."""
LEAST_SPAN_BYTES = 4 * MIB
"""And the least. Short ones arrive nearly in order, which is what the digests want; long ones make up for a slow round trip."""
ROUND_TRIPS = 20
"""A request asks for as much as arrives in so many round trips: waiting for the first byte then costs at most a twentieth."""
AHEAD_BYTES = MIB // 2
"""Where more than this waits to be read, the line is quicker than we are: waiting for a first byte costs nothing then, and what was asked for
and is not on the disk yet is what a kill loses."""
QUICK_CONNECTIONS = 2
"""So many take turns at such a line, one receiving while the other writes; the rest wait until it is slower again."""
AT_STAKE_BYTES = 16 * MIB
"""And so much they may have asked for together: few long requests cost less than many short ones, and a kill loses no more."""
BLOCK_S = 2.0
"""On a slow line a block is written and journaled after this time, however little it is: a kill costs seconds, not megabytes."""
MOMENT_S = 0.25
"""What arrives is counted, and a stop is heeded, this often."""
IGNORED_RANGES_ALLOWED = 2
"""How often a server may answer a range with the whole file before it is believed that it knows no ranges."""


class _Leave(Exception):
    """Another connection takes the whole file; never leaves this module."""


class Transfer:
    """One line's try at a file. The first error ends every connection; what has arrived stays in the partial."""

    def __init__(
        self,
        line: Line,
        file: LockedFile,
        partial: Partial,
        hot: HotBlocks,
        second: SecondCopy | None = None,
        *,
        patience_s: float,
        job: Job,
        watch: Watch,
    ) -> None:
        self.line, self.file, self.partial = line, file, partial
        self.patience = Patience(patience_s)
        self.received_bytes = 0
        self._hot, self._second, self._job, self._watch = hot, second, job, watch
        self._retries_before = job.retries
        self._lock = threading.Lock()
        self._todo: list[Range] = []
        self._left_bytes = 0
        self._connections = 1
        self._span_bytes = LEAST_SPAN_BYTES
        self._asked_bytes = 0
        self._quick = False
        self._ignored = 0
        self._taker: int | None = None
        self._active = threading.Condition(self._lock)
        self._active_count = 0
        self._ended = threading.Event()
        self._buffers = threading.local()
        self._error: BaseException | None = None

    def run(self, executor: ThreadPoolExecutor, connections: int) -> None:
        """Fetch until nothing is missing. :raises Trouble: when patience is at its end. :raises SteelyardError:"""
        while missing := self.partial.missing():
            self._todo = list(reversed(missing))
            self._left_bytes = sum(end - start for start, end in missing)
            self._connections = max(1, min(connections, -(-self._left_bytes // LEAST_SPAN_BYTES)))
            self.patience.connections = self._connections
            self._taker, self._active_count, self._asked_bytes = None, self._connections, 0
            futures = [executor.submit(self._connection, number) for number in range(self._connections)]
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

    def _take(self, number: int) -> Range | None:
        """The next range from the front for connection *number*; shorter at the end, so that all connections end together."""
        with self._lock:
            while self._quick and number >= QUICK_CONNECTIONS and self._todo and self._taker is None:
                self._active.wait(0.2)
                self._check()
            if not self._todo or self._taker is not None:
                return None
            start, end = self._todo.pop()
            fair = self._left_bytes // (2 * (min(self._connections, QUICK_CONNECTIONS) if self._quick else self._connections))
            most = min(self._span_bytes, fair, AT_STAKE_BYTES - self._asked_bytes if self._quick else fair)
            most = max(LEAST_SPAN_BYTES, most)
            # A range ends where a block does: blocks of full size are what the journal is made for.
            cut = min(end, max((start + most) // BLOCK_BYTES, start // BLOCK_BYTES + 1) * BLOCK_BYTES)
            if cut < end:
                self._todo.append((cut, end))
            self._left_bytes -= cut - start
            self._asked_bytes += cut - start
            return start, cut

    def _learn(self, first_byte_s: float, whole_s: float, count: int, waiting_bytes: int) -> None:
        """From one request: how much is worth asking for at once."""
        body_s = max(whole_s - first_byte_s, 1e-4)
        with self._lock:
            self._quick = waiting_bytes > AHEAD_BYTES
            if self._quick:
                self._span_bytes = AT_STAKE_BYTES // min(self._connections, QUICK_CONNECTIONS)
                return
            self._active.notify_all()
            wanted = ROUND_TRIPS * first_byte_s * count / body_s
            self._span_bytes = int(min(SPAN_BYTES, max(LEAST_SPAN_BYTES, (self._span_bytes + wanted) / 2)))

    def _take_over(self) -> bool:
        """Where the server knows no ranges one connection takes the whole file, and the others leave: no byte is written twice."""
        with self._lock:
            if self._taker is not None:
                return self._taker == threading.get_ident()
            self._taker = threading.get_ident()
            self._todo.clear()
            while self._active_count > 1:
                self._active.wait(0.1)
                self._check()
            return True

    # --- one connection

    def _connection(self, number: int) -> None:
        try:
            self._buffers.mine = self._hot.buffer()
            while (span := self._take(number)) is not None and self._bring(*span):
                self.partial.start_writing(span[0], span[1] - span[0])
                with self._lock:
                    self._asked_bytes -= span[1] - span[0]
        except _Leave:
            pass
        except BaseException as error:  # noqa: BLE001 - run() raises it once every connection has ended
            with self._lock:
                if self._error is None or isinstance(self._error, Stopped):
                    self._error = error
            self._ended.set()
        finally:
            with self._lock:
                self._active_count -= 1
                self._active.notify_all()

    def _bring(self, at: int, end: int) -> bool:
        """Bring one range; False when another connection has taken over the whole file. :raises Trouble: when patience is at its end."""
        stale: Address | None = None
        while at < end:
            self._check()
            try:
                address = self.line.address(self.file, stale)
                asked_at = time.monotonic()
                with self.line.stream(self.file, at, end, address) as stream:
                    first_byte_s = time.monotonic() - asked_at
                    if stream.ignored_range:
                        if not self._believe_no_ranges():
                            return False
                        end = self.file.size_bytes
                        stream.end = end
                    waited = self._pour(stream, at)
                    self._learn(first_byte_s, time.monotonic() - asked_at, end - at, waited)
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

    def _pour(self, stream: Stream, at: int) -> int:
        """Write what the stream brings from *at* on, in journaled blocks; what is there already is passed over and never written again.

        Returns the most bytes that waited to be read after a block was written.
        """
        waited = 0
        while stream.at < stream.end:
            start = stream.at
            end, skip = self._next_block(start, stream.end, at)
            buffer: memoryview = self._buffers.mine
            block, filled = buffer[: end - start], 0
            until = time.monotonic() + BLOCK_S
            try:
                # One block fills the buffer, in as many reads as the line wants, and is written in one go.
                while filled < len(block) and (skip or time.monotonic() < until):
                    got, ended = stream.fill(block[filled:], MOMENT_S)
                    filled += got
                    self._count(got, new=not skip)
                    if ended is not None:
                        raise ended
                    self._check()
            finally:
                # What a broken connection brought is worth keeping too.
                if filled and not skip:
                    self._put(start, filled, buffer)
                    waited = max(waited, stream.waiting_bytes())
        return waited

    def _next_block(self, start: int, end: int, wanted_from: int) -> tuple[int, bool]:
        """Where the block that begins at *start* ends, and whether it is to be passed over."""
        end = min(end, (start // BLOCK_BYTES + 1) * BLOCK_BYTES)
        if start < wanted_from:
            return min(end, wanted_from), True
        if self._taker is not None:
            for lo, hi in self.partial.have():
                if lo <= start < hi:
                    return min(end, hi), True
                if start < lo < end:
                    return lo, False
        return end, False

    def _put(self, start: int, length: int, buffer: memoryview) -> None:
        from awscrt.checksums import crc64nvme

        block = buffer[:length]
        self.partial.write(start, block)
        if self._second is not None:
            self._second.write(start, block)
        crc = crc64nvme(block)
        # Before the record, which tells the digests that it is there.
        self._buffers.mine = self._hot.swap(start, length, buffer)
        self.partial.record(start, length, crc)

    def _count(self, got: int, *, new: bool) -> None:
        with self._lock:
            self.received_bytes += got
        if new:
            self.patience.progress(got)
            self._watch.advance(self._job, got)

    def _check(self) -> None:
        if self._taker is not None and self._taker != threading.get_ident():
            raise _Leave
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
