"""One writer at a time: a lock on disk that dies with its process.

flock is the lock; the text in the file only says who holds it. It guards against two runs on one machine, whatever started them; Prefect's
concurrency limits are a courtesy on top.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steelyard.disk import errors_of, make_folder
from steelyard.errors import Busy
from steelyard.manifest import utc_now
from steelyard.names import slug
from steelyard.watch import current_watch


@contextmanager
def locked(folder: Path, what: str, verb: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of *what* (a copy and a model, say) while the block runs.

    :raises Busy: when another run holds it for longer than *wait_s*, saying who. :raises ReadOnly:
    """
    path = make_folder(folder) / f"{slug(what)}.lock"
    with errors_of(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        until = time.monotonic() + wait_s
        while not _taken(fd, path):
            if time.monotonic() >= until:
                raise Busy(what=what, holder=_holder(path))
            current_watch().pause(0.05)
        holder = {"verb": verb, "host": socket.gethostname(), "pid": os.getpid(), "since": utc_now()}
        with errors_of(path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        # The file stays: removing it would let a third run lock a name that the second no longer holds.
        os.close(fd)


def _taken(fd: int, path: Path) -> bool:
    with errors_of(path):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _holder(path: Path) -> str:
    try:
        seen = json.loads(path.read_text(encoding="utf-8"))
        return f"steelyard {seen['verb']} (process {seen['pid']} on {seen['host']}, since {seen['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
