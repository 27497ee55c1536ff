"""The Hub as a copy to read pieces from: at the locked commit, by Range, each piece proven by whoever reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from steelyard.errors import OtherSide
from steelyard.line import Line, as_error
from steelyard.lock import LockedFile
from steelyard.watch import current_watch
from steelyard.weather import Patience, Trouble

log = logging.getLogger("steelyard.hub")


class HubFile:
    """A ByteSource over one file of the Hub and its mirrors. *bytes_fetched* and *requests* count what came over the line."""

    remote = True

    def __init__(self, lines: Callable[[], Sequence[Line]], file: LockedFile, *, patience_s: float) -> None:
        # The lines are opened at the first read: a repair that needs no Hub asks none.
        self._open = lines
        self._lines: Sequence[Line] | None = None
        self.file = file
        self._patience_s = patience_s
        self.bytes_fetched = 0
        self.requests = 0

    @property
    def name(self) -> str:
        return f"hub: {self.file.path}"

    @property
    def size_bytes(self) -> int:
        return self.file.size_bytes

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """One Range request in the ordinary case; trouble is endured as in a download. :raises OtherSide:"""
        end = min(offset + len(buffer), self.size_bytes)
        if end <= offset:
            return 0
        if self._lines is None:
            self._lines = self._open()
        error: OtherSide | None = None
        for line in self._lines:
            try:
                return self._read(line, offset, end, buffer)
            except Trouble as trouble:
                error = as_error(trouble, line.endpoint, line.repo_id)
            except OtherSide as one:
                error = one
        assert error is not None
        raise error

    def _read(self, line: Line, start: int, end: int, buffer: memoryview) -> int:
        patience = Patience(self._patience_s)
        at, stale = start, None
        while at < end:
            address = None
            try:
                address = line.address(self.file, stale)
                self.requests += 1
                with line.stream(self.file, at, end, address) as stream:
                    while stream.at < end:
                        before = stream.at
                        data = stream.next(min(1 << 20, end - before))
                        self.bytes_fetched += len(data)
                        if stream.at <= at:
                            continue
                        buffer[before - start : stream.at - start] = data
                        at = stream.at
                        patience.progress()
                        current_watch().check()
            except Trouble as trouble:
                stale = address if trouble.reaction.fresh_address else None
                log.info("%s at %d: %s", self.name, at, trouble)
                if not patience.endure(trouble, current_watch()):
                    raise
        return end - start

    def close(self) -> None:
        return
