"""Child processes that end when we end: by their id, within bounded time, and whatever they started with them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.orchestrator import process_ticks

MOST_LOG_BYTES = 20 * 1000**2
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One program with its log file. Its descendants are remembered with their start times: a reused pid is never signalled."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: list[float] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > MOST_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        libc = ctypes.CDLL(None, use_errno=True)

        def die_with_us() -> None:
            # Should we be killed outright, the kernel tells the child.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with self.log.open("ab") as log:
            # A session of its own: the terminal's Ctrl-C comes to us alone, and we end the children in order.
            self.process = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_us,
            )
        self.started.append(time.monotonic())

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def ended(self) -> int | None:
        """Its exit code once it has ended."""
        return self.process.poll() if self.process else None

    def last_lines(self, count: int = 5) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 8192))
                lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        except OSError:
            return ""
        return " / ".join([line for line in lines if line][-count:])

    def stop(self, patience_s: float, first: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end; after *patience_s* kill it and everything it started. Nothing of it lives after this."""
        if self.process is None:
            return
        self._look()
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, first)
        self._await(time.monotonic() + patience_s)
        for number, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            left = self._alive()
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            self._await(time.monotonic() + wait_s)
        self.process.poll()

    def _await(self, ends: float) -> None:
        while time.monotonic() < ends and self._alive():
            self._look()
            time.sleep(0.1)

    def _look(self) -> None:
        """Remember the child and all its descendants."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
        todo = [self.pid, *self._alive()]
        while todo:
            pid = todo.pop()
            ticks = process_ticks(pid)
            if ticks is not None:
                self._seen.setdefault(pid, ticks)
            todo += [child for child in parents.get(pid, ()) if child not in self._seen]

    def _alive(self) -> list[int]:
        if self.process is not None:
            self.process.poll()
        return [pid for pid, ticks in self._seen.items() if process_ticks(pid) == ticks]
