"""What a run is watched by: its stop request and its progress.

A verb sets the watch once; a step reads it. The command line shows it with rich, a flow as a progress artifact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from steelyard.errors import Stopped

log = logging.getLogger("steelyard.progress")


@dataclass
class Job:
    """One thing that takes long: *done* of *total* bytes, since *started* [monotonic seconds]."""

    label: str
    total_bytes: int
    done_bytes: int = 0
    retries: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def rate_bytes_per_s(self) -> float:
        return self.done_bytes / max(time.monotonic() - self.started, 1e-3)

    @property
    def remaining_s(self) -> float | None:
        rate = self.rate_bytes_per_s
        return (self.total_bytes - self.done_bytes) / rate if rate > 0 and self.done_bytes else None


class Watch:
    """Counts progress from any thread and carries the stop request to every thread.

    *show* is called with the job at its start, at most every *every_s* seconds while it moves, and at its end.
    """

    def __init__(self, show: Callable[[Job, bool], None] | None = None, every_s: float = 0.2) -> None:
        self.stop = threading.Event()
        self._show = show
        self._every_s = every_s
        self._lock = threading.Lock()
        self._last = 0.0

    @contextmanager
    def job(self, label: str, total_bytes: int) -> Iterator[Job]:
        job = Job(label, total_bytes)
        self._tell(job, last=False, force=True)
        try:
            yield job
        finally:
            self._tell(job, last=True, force=True)

    def advance(self, job: Job, count: int) -> None:
        with self._lock:
            job.done_bytes += count
        self._tell(job, last=False)

    def check(self) -> None:
        """:raises Stopped: when a stop was asked for."""
        if self.stop.is_set():
            raise Stopped()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond a stop request. :raises Stopped:"""
        if self.stop.wait(seconds):
            raise Stopped()

    def _tell(self, job: Job, *, last: bool, force: bool = False) -> None:
        if self._show is None:
            return
        now = time.monotonic()
        with self._lock:
            if not force and now - self._last < self._every_s:
                return
            self._last = now
        self._show(job, last)


_current: ContextVar[Watch | None] = ContextVar("steelyard_watch", default=None)
_default = Watch()


def current_watch() -> Watch:
    return _current.get() or _default


@contextmanager
def watched_by(watch: Watch) -> Iterator[Watch]:
    token = _current.set(watch)
    try:
        yield watch
    finally:
        _current.reset(token)
