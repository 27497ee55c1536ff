"""One writer at a time: a lock on disk that dies with its process.

flock is the lock; the text in the file only says who holds it. It guards against two runs on one machine, whatever started them; Prefect's
concurrency limits are a courtesy on top.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steelyard.disk import errors_of, make_folder
from steelyard.errors import Busy
from steelyard.manifest import utc_now
from steelyard.names import slug


@contextmanager
def locked(folder: Path, what: str, verb: str) -> Iterator[None]:
    """Hold the lock of *what* (a copy and a model, say) while the block runs.

    :raises Busy: at once when another run holds it, saying who. :raises ReadOnly:
    """
    path = make_folder(folder) / f"{slug(what)}.lock"
    with errors_of(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(what=what, holder=_holder(path)) from error
        holder = {"verb": verb, "host": socket.gethostname(), "pid": os.getpid(), "since": utc_now()}
        with errors_of(path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        yield
    finally:
        # The file stays: removing it would let a third run lock a name that the second no longer holds.
        os.close(fd)


def _holder(path: Path) -> str:
    try:
        seen = json.loads(path.read_text(encoding="utf-8"))
        return f"steelyard {seen['verb']} (process {seen['pid']} on {seen['host']}, since {seen['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
