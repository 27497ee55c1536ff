"""Is there a Prefect API that runs should show in: PREFECT_API_URL, or `steelyard up` running here. Knows nothing of Prefect itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from steelyard.disk import write_atomically


@dataclass(frozen=True)
class Running:
    """A `steelyard up` of this user on this machine."""

    api_url: str
    pid: int
    started_ticks: int


def state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "steelyard"


def state_path() -> Path:
    return state_folder() / "up.json"


def process_ticks(pid: int) -> int | None:
    """When process *pid* was started [clock ticks since boot]; None when there is no such process. A reused pid has another start."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def running() -> Running | None:
    """The `steelyard up` that is alive now, if any."""
    try:
        seen = json.loads(state_path().read_text(encoding="utf-8"))
        found = Running(str(seen["api_url"]), int(seen["pid"]), int(seen["started_ticks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if process_ticks(found.pid) == found.started_ticks else None


def announce(api_url: str) -> None:
    """Let commands of this user find the server that this process runs."""
    record = {"api_url": api_url, "pid": os.getpid(), "started_ticks": process_ticks(os.getpid())}
    write_atomically(state_path(), json.dumps(record).encode(), 0o600)


def withdraw() -> None:
    seen = running()
    if seen is not None and seen.pid == os.getpid():
        state_path().unlink(missing_ok=True)


def api_url() -> str | None:
    """Where runs should show, or None: then a verb runs in its own process and needs nobody."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    found = running()
    return found.api_url if found else None
