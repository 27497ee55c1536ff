"""The Hub as a copy to read pieces from: at the locked commit, by Range, each piece proven by whoever reads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from steelyard.errors import OtherSide
from steelyard.line import Line
from steelyard.lock import LockedFile
from steelyard.watch import current_watch
from steelyard.weather import CONDITION, Patience, Trouble, as_error

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
        # Reads come from threads of a pool, where the watch of the run is not the current one.
        self._watch = current_watch()
        self._lock = threading.Lock()
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
        with self._lock:
            if self._lines is None:
                self._lines = self._open()
        first_error: OtherSide | None = None
        for line in self._lines:
            try:
                return self._read(line, offset, end, buffer)
            except Trouble as trouble:
                error = as_error(trouble, line.endpoint, line.repo_id)
            except OtherSide as refused:
                error = refused
            # What the primary says is what the user can act on.
            first_error = first_error or error
        assert first_error is not None
        raise first_error

    def _read(self, line: Line, start: int, end: int, buffer: memoryview) -> int:
        patience = Patience(self._patience_s)
        at, stale = start, None
        while at < end:
            try:
                address = line.address(self.file, stale)
                with self._lock:
                    self.requests += 1
                with line.stream(self.file, at, end, address) as stream:
                    if stream.ignored_range:
                        # The whole file for one piece of it: another address may know ranges, another line too.
                        raise Trouble(CONDITION["ignores-range"])
                    while at < end:
                        got = stream.readinto(buffer[at - start : end - start])
                        at += got
                        patience.progress(got)
                        with self._lock:
                            self.bytes_fetched += got
                        self._watch.check()
            except Trouble as trouble:
                if trouble.reaction.fresh_address and trouble.address:
                    stale = address
                log.info("%s at %d: %s", self.name, at, trouble)
                if not patience.endure(trouble, self._watch):
                    raise
        return end - start

    def close(self) -> None:
        return
