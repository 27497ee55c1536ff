"""One writer at a time: a lock on disk that dies with its process, and with its machine.

flock is the lock among runs on one machine, whatever started them; Prefect's concurrency limits are a courtesy on top. It does not cross machines
(some network file systems, a drive that was pulled out of one and plugged into another), so the file also says who holds it and when that run last
gave a sign of life: another machine's record is believed as long as it is fresh, and taken over when it is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.disk import errors_of, make_folder
from steelyard.errors import Busy
from steelyard.manifest import utc_now
from steelyard.names import slug
from steelyard.watch import Watch, current_watch

log = logging.getLogger("steelyard")

BEAT_S = 15.0
"""How often a holder gives a sign of life."""
STALE_S = 180.0
"""After this long without one, another machine may take the lock over."""
RECORD_BYTES = 512
SETTLE_S = 0.5
"""After a take-over: long enough to see whether a third machine did the same."""


def this_machine() -> str:
    """Tells machines apart where host names do not."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


@contextmanager
def locked(folder: Path, what: str, verb: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of *what* (a copy and a model, say) while the block runs. A run whose lock was taken over meanwhile is stopped.

    :raises Busy: when another run holds it for longer than *wait_s*, saying who. :raises ReadOnly:
    """
    path = make_folder(folder) / f"{slug(what)}.lock"
    with errors_of(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    held: _Held | None = None
    try:
        until = time.monotonic() + wait_s
        while not _taken(fd, path) or _held_elsewhere(path):
            if time.monotonic() >= until:
                raise Busy(what=what, holder=_holder(path), hint=_hint(path))
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            current_watch().pause(0.05)
        held = _Held(
            fd, path, {"verb": verb, "host": socket.gethostname(), "machine": this_machine(), "pid": os.getpid(), "since": utc_now()}
        )
        taken_over = _record(path)
        held.beat()
        if taken_over and not _is_of_here(taken_over):
            log.warning("the lock of %s is taken over from %s", what, _told(taken_over))
            current_watch().pause(SETTLE_S)
            if not held.is_ours():
                raise Busy(what=what, holder=_holder(path))
        _heart.add(held)
        yield
    finally:
        if held is not None:
            _heart.remove(held)
            held.end()
        # The file stays: removing it would let a third run lock a name that the second no longer holds.
        os.close(fd)


@dataclass(eq=False)
class _Held:
    fd: int
    path: Path
    record: dict[str, Any]

    def __post_init__(self) -> None:
        self.record["token"] = secrets.token_hex(8)
        self.watch: Watch = current_watch()

    def beat(self) -> None:
        """Give a sign of life: the record anew, so that the file's time moves by the clock of whoever keeps it."""
        # Of one length: who reads while it is written sees the old or the new, never the end of one behind the other.
        data = json.dumps({**self.record, "beat": time.time()}).encode().ljust(RECORD_BYTES)
        with errors_of(self.path):
            os.pwrite(self.fd, data, 0)
            # Only where it must be: some drivers in user space refuse to truncate.
            if os.fstat(self.fd).st_size > len(data):
                os.ftruncate(self.fd, len(data))

    def is_ours(self) -> bool:
        """Whether the record on disk is still this one; what can't be read is not taken for somebody else's."""
        seen = _record(self.path)
        return not seen or seen.get("token") == self.record["token"]

    def end(self) -> None:
        """An empty file is held by nobody."""
        with contextlib.suppress(OSError):
            if self.is_ours():
                os.pwrite(self.fd, b" " * RECORD_BYTES, 0)
                os.ftruncate(self.fd, 0)


class _Heart:
    """One thread that beats for every lock of this process; it ends when there is none."""

    def __init__(self) -> None:
        self._held: set[_Held] = set()
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, one: _Held) -> None:
        with self._change:
            self._held.add(one)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="lock heartbeat", daemon=True)
                self._thread.start()

    def remove(self, one: _Held) -> None:
        with self._change:
            self._held.discard(one)
            self._change.notify()

    def _run(self) -> None:
        with self._change:
            while self._held:
                if self._change.wait(BEAT_S):
                    continue  # one was let go
                for one in list(self._held):
                    self._beat(one)
            self._thread = None

    def _beat(self, one: _Held) -> None:
        try:
            if one.is_ours():
                one.beat()
                return
        except Exception as error:  # noqa: BLE001 (a drive that is gone is told by whoever writes to it)
            log.debug("%s: no sign of life could be given: %s", one.path.name, error)
            return
        log.error("the lock %s was taken over by %s while this run gave no sign of life: it stops", one.path.stem, _holder(one.path))
        self._held.discard(one)
        one.watch.stop.set()


_heart = _Heart()
# A child has neither the thread nor the locks of its parent, and the condition may have been held at that moment.
os.register_at_fork(after_in_child=_heart.__init__)  # type: ignore[misc]


def _taken(fd: int, path: Path) -> bool:
    with errors_of(path):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # A file system without locks: the record alone must do, as it does between machines.
            if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
    return True


def _held_elsewhere(path: Path) -> bool:
    """Whether another machine holds it: its record is there, and fresh. One of this machine, whose flock we got, is of a run that died."""
    record = _record(path)
    if not record or _is_of_here(record):
        return False
    age_s = _silence_s(path, record)
    return age_s < STALE_S


def _is_of_here(record: dict[str, Any]) -> bool:
    """Records of earlier versions have the host's name only."""
    return record["machine"] == this_machine() if "machine" in record else record.get("host") == socket.gethostname()


def _silence_s(path: Path, record: dict[str, Any]) -> float:
    """Seconds since the holder's last sign of life, the least of what two clocks say: the file system's, and the holder's own."""
    ages = [STALE_S + 1.0]
    probe = path.with_name(f".now-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        # Both times are then by one clock, on a network file system the server's.
        probe.write_bytes(b"")
        ages.append(probe.stat().st_mtime - path.stat().st_mtime)
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        ages.append(time.time() - float(record["beat"]))
    # A time in the future says nothing, except for the little that clocks differ by.
    return min(max(0.0, age) for age in ages if age > -STALE_S)


def _record(path: Path) -> dict[str, Any]:
    """What the file says; empty where nobody holds it, or it can't be read."""
    try:
        seen = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _told(record: dict[str, Any]) -> str:
    try:
        return f"steelyard {record['verb']} (process {record['pid']} on {record['host']}, since {record['since']})"
    except KeyError:
        return "another run"


def _holder(path: Path) -> str:
    return _told(_record(path))


def _hint(path: Path) -> str:
    record = _record(path)
    if not record or _is_of_here(record):
        return ""
    silent = _silence_s(path, record)
    return f"wait for that run to end; its last sign of life was {silent:.0f} s ago, and after {STALE_S:.0f} s of silence its lock is taken over"
