"""Going easy on a line: a limit of bytes a second, and the hours in which scheduled work may use it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from steelyard.watch import Watch

BURST_S = 0.25
"""What was not used can be made up for this long: a line is not to be flooded after a pause [s]."""


class Throttle:
    """Bytes at no more than *bytes_per_s* over all threads; 0 is no limit. *clock* in seconds, for tests."""

    def __init__(self, bytes_per_s: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    @property
    def block_bytes(self) -> int:
        """How much to move between two calls of take(): a tenth of a second's worth, 4 KiB to 1 MiB."""
        return max(4096, min(1 << 20, self.bytes_per_s // 10))

    def take(self, count: int, watch: Watch) -> None:
        """Wait until *count* more bytes are due. :raises Stopped:"""
        if not self.bytes_per_s:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_S) + count / self.bytes_per_s
            wait = self._free_at - now
        if wait > 0:
            watch.pause(wait)


class SlowBody:
    """A request's body that is read no faster than *throttle* has it. What http.client and botocore need of a file, and no more."""

    def __init__(self, data: bytearray, throttle: Throttle, watch: Watch) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._throttle = throttle
        self._watch = watch

    def __len__(self) -> int:
        return len(self._data)

    def read(self, count: int = -1) -> memoryview:
        """At most a tenth of a second's bytes, whatever was asked for. :raises Stopped:"""
        most = min(len(self._data) - self._at, self._throttle.block_bytes)
        part = self._data[self._at : self._at + (most if count is None or count < 0 else min(count, most))]
        self._throttle.take(len(part), self._watch)
        self._at += len(part)
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, min(offset + (0, self._at, len(self._data))[whence], len(self._data)))
        return self._at

    def tell(self) -> int:
        return self._at


@dataclass(frozen=True)
class Window:
    """Hours of the day, local time; *begins* and *ends* in minutes from midnight. It may go over midnight."""

    begins: int
    ends: int

    @classmethod
    def parse(cls, text: object) -> Self | object:
        """ "22:00-06:00". :raises ValueError:"""
        if not isinstance(text, str):
            return text
        match = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*[-–]\s*(\d{1,2}):(\d\d)\s*", text)
        if not match:
            raise ValueError(f'{text!r} is no span of hours; write it as "22:00-06:00"')
        begins, ends = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
        if max(begins, ends) > 24 * 60 or int(match[2]) > 59 or int(match[4]) > 59 or begins == ends or begins == 24 * 60:
            raise ValueError(f'{text!r} is no span of hours; write it as "22:00-06:00"')
        return cls(begins, ends)

    def __str__(self) -> str:
        return f"{self.begins // 60:02}:{self.begins % 60:02}-{self.ends // 60:02}:{self.ends % 60:02}"

    def is_open(self, now: datetime) -> bool:
        minute = now.hour * 60 + now.minute
        if self.begins < self.ends:
            return self.begins <= minute < self.ends
        return minute >= self.begins or minute < self.ends

    def opens(self, now: datetime) -> datetime:
        """When it is next open; *now* where it is."""
        if self.is_open(now):
            return now
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        at = day + timedelta(minutes=self.begins)
        return at if at > now else at + timedelta(days=1)
