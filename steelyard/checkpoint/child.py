"""Running the load check's child: its environment scrubbed, its time and memory watched, its end certain."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from steelyard.checkpoint.reasons import Reason, ReasonCode
from steelyard.errors import Stopped

POLL_S = 0.05
_KEPT_ENVIRONMENT = (
    "PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PYTHONHASHSEED", "VIRTUAL_ENV",
)  # fmt: skip
"""What a child needs to find its interpreter and its GPU. No token, key or proxy of the parent is among them."""
_ANSWER_LIMIT_BYTES = 16 * 1024 * 1024

ChildVerdict = Literal["ok", "broken", "untrusted", "too-big", "unsupported"]


@dataclass(slots=True)
class ChildOutcome:
    """How the child ended: its *answer* if it gave one."""

    verdict: ChildVerdict
    reasons: tuple[Reason, ...]
    seconds: float
    peak_rss_bytes: int = 0
    answer: dict[str, Any] = field(default_factory=dict)


def child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # -P keeps the current folder, where a torch.py might lie, off sys.path; the package's own folder must then be named.
    return {**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONDONTWRITEBYTECODE": "1", "TORCHDYNAMO_DISABLE": "1"}


def run_child(
    request: dict[str, Any],
    *,
    timeout_s: float,
    max_memory_bytes: int | None,
    stop: threading.Event | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    module: str = "steelyard.checkpoint.load_child",
) -> ChildOutcome:
    """Start the child with *request* on its stdin and wait for its answer, its death, the time-out, the memory bound or *stop*.

    The bound is on anonymous and shared memory as /proc tells it, looked at every 50 ms: an address-space limit would break CUDA, and
    mapped file pages cost nothing that others need.
    :raises Stopped: when *stop* was set.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as asked:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", module],
            stdin=asked, stdout=subprocess.PIPE, stderr=errors, env=child_environment(), cwd=tempfile.gettempdir(), start_new_session=True,
        )  # fmt: skip
        watch = _Watch(child, started, timeout_s, max_memory_bytes, stop, progress)
        try:
            watch.run()
        finally:
            watch.end()
        seconds = time.monotonic() - started
        if stop is not None and stop.is_set() and not watch.answer:
            raise Stopped
        return _outcome(watch, child.returncode, _tail(errors), seconds)


class _Watch:
    def __init__(
        self, child: subprocess.Popen[bytes], started: float, timeout_s: float, max_memory_bytes: int | None,
        stop: threading.Event | None, progress: Callable[[str, int, int], None] | None,
    ) -> None:  # fmt: skip
        self.child = child
        self.deadline = started + timeout_s
        self.timeout_s = timeout_s
        self.max_memory_bytes = max_memory_bytes
        self.stop = stop
        self.progress = progress
        self.answer: dict[str, Any] = {}
        self.ended_for: Reason | None = None
        self.verdict: ChildVerdict = "broken"
        self.peak = 0
        self._buffer = b""

    def run(self) -> None:
        assert self.child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(POLL_S):
                    data = os.read(self.child.stdout.fileno(), 65536)
                    if not data:
                        return
                    self._take(data)
                if self.answer or self._must_end():
                    return

    def _take(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _ANSWER_LIMIT_BYTES:
            self.ended_for = Reason("child-died", "the loading process answered at a length that makes no sense")
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "answer" in message:
                self.answer = message["answer"]
            elif self.progress is not None:
                self.progress(str(message["phase"]), int(message["done"]), int(message["total"]))

    def _must_end(self) -> bool:
        if self.ended_for is not None:
            return True
        if self.stop is not None and self.stop.is_set():
            return True
        if time.monotonic() > self.deadline:
            self.ended_for = Reason("timeout", f"it had not loaded after {self.timeout_s:g} s")
            return True
        own, peak = _memory_of(self.child.pid)
        self.peak = max(self.peak, peak)
        if self.max_memory_bytes is not None and own > self.max_memory_bytes:
            self.verdict = "too-big"
            self.ended_for = Reason(
                "memory-limit", f"it took {own / 1e6:.0f} MB while loading, the limit is {self.max_memory_bytes / 1e6:.0f} MB"
            )
            return True
        return False

    def end(self) -> None:
        """The child and whatever it started are gone after this."""
        if self.answer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()


def _memory_of(pid: int) -> tuple[int, int]:
    """(anonymous + shared bytes, peak resident bytes) of a process; zeros once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith(" kB")}
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0) + sizes.get("VmSwap", 0), sizes.get("VmHWM", 0)


def _tail(errors: IO[bytes]) -> str:
    """The last line the child wrote to stderr."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - 4096))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


def _outcome(watch: _Watch, code: int, error: str, seconds: float) -> ChildOutcome:
    answer = watch.answer
    if watch.ended_for is not None:
        return ChildOutcome(watch.verdict, (watch.ended_for,), seconds, watch.peak)
    if answer:
        reasons = tuple(Reason(cast(ReasonCode, row["code"]), row["message"]) for row in answer.get("reasons", ()))
        return ChildOutcome(answer["verdict"], reasons, seconds, watch.peak, answer)
    if code == -signal.SIGKILL:
        return ChildOutcome(
            "too-big", (Reason("memory-limit", "the loading process was killed, most likely for want of memory"),), seconds, watch.peak
        )
    if code < 0:
        name = signal.Signals(-code).name
        return ChildOutcome("broken", (Reason("child-died", f"the loading process died of {name}"),), seconds, watch.peak)
    return ChildOutcome("broken", (Reason("child-died", f"the loading process ended without an answer: {error}"),), seconds, watch.peak)
