"""Progress in the Prefect UI: one progress artifact for each job that takes long, moved every two seconds by a thread of its own.

The threads that move bytes never wait for the API: they only count, as they do without Prefect.
"""

from __future__ import annotations

import contextvars
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from steelyard.names import slug
from steelyard.terminal import told
from steelyard.watch import Job, Watch, current_watch, watched_by

log = logging.getLogger("steelyard")

EVERY_S = 2.0


@dataclass
class _Shown:
    job: Job
    context: contextvars.Context
    begun: float = field(default_factory=time.monotonic)
    artifact: UUID | None = None
    ended: bool = False


class FlowWatch(Watch):
    """The watch of a flow run: what the *outer* watch shows, and artifacts beside it. It shares the outer one's stop request."""

    def __init__(self, outer: Watch, every_s: float = EVERY_S) -> None:
        super().__init__()
        self.stop = outer.stop
        self._outer = outer
        self._wait_s = every_s
        self._jobs: list[_Shown] = []
        self._jobs_lock = threading.Lock()
        self._done = threading.Event()
        self._home = contextvars.copy_context()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    @contextmanager
    def job(self, label: str, total_bytes: int) -> Iterator[Job]:
        with self._outer.job(label, total_bytes) as job:
            # A pool's thread knows of no run; the artifact then belongs to the flow run alone.
            context = contextvars.copy_context() if threading.current_thread() is threading.main_thread() else self._home.copy()
            shown = _Shown(job, context)
            with self._jobs_lock:
                self._jobs.append(shown)
            try:
                yield job
            finally:
                shown.ended = True

    def advance(self, job: Job, count: int) -> None:
        self._outer.advance(job, count)

    def start(self) -> None:
        self._thread.start()

    def close(self, wait_s: float = 5.0) -> None:
        """Show the last of it, but wait no longer than *wait_s* for an API that does not answer."""
        self._done.set()
        self._thread.join(wait_s)

    def _follow(self) -> None:
        while not self._done.wait(self._wait_s):
            if not self._show_all():
                return
        self._show_all()

    def _show_all(self) -> bool:
        """Show every job that moves. False once an artifact failed: the work matters, its picture does not."""
        with self._jobs_lock:
            jobs = list(self._jobs)
            self._jobs = [one for one in self._jobs if not one.ended]
        for one in jobs:
            if one.ended and one.artifact is None:
                continue  # over before anyone could look
            try:
                one.context.run(_show, one)
            except Exception as error:  # noqa: BLE001 (whatever it is, it must not end the run)
                log.warning("progress is no longer shown: %s", type(error).__name__)
                return False
        return True


def _show(one: _Shown) -> None:
    job = one.job
    # What has ended without reaching its end was stopped or failed; it keeps the percentage it had.
    percent = min(100.0, 100 * job.done_bytes / job.total_bytes) if job.total_bytes else 100.0 if one.ended else 0.0
    if one.artifact is None:
        made = create_progress_artifact(progress=percent, key=f"progress-{slug(job.label)}"[:255], description=told(job))
        one.artifact = made if isinstance(made, UUID) else None
    else:
        update_progress_artifact(one.artifact, progress=percent, description=told(job))


@contextmanager
def watched_in_prefect() -> Iterator[FlowWatch]:
    """The watch of a flow's body: shows in the UI, and hears a cancel at once in every thread."""
    watch = FlowWatch(current_watch())
    with watched_by(watch), _stopped_by_sigterm(watch):
        watch.start()
        try:
            yield watch
        finally:
            watch.close()


@contextmanager
def _stopped_by_sigterm(watch: Watch) -> Iterator[None]:
    """Set the watch's stop as soon as SIGTERM arrives.

    Prefect's own handler must stay: replace it, and a cancel is no longer acknowledged (it becomes a crash). It raises in the main thread
    only; threads that wait out bad weather would not hear of it. The wakeup descriptor tells of a signal without touching its handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        while seen := ours.recv(16):
            if signal.SIGTERM in seen:
                watch.stop.set()

    thread = threading.Thread(target=listen, name="stop", daemon=True)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join(1)
        ours.close()
