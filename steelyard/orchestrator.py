"""Is there a Prefect API that runs should show in: PREFECT_API_URL, or `steelyard up` running here. Asked over HTTP, without loading Prefect."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


TIMEOUT_S = 3.0


BUSY = 503
"""What a Prefect server says that keeps its database in SQLite, when two writers meet: nothing was done, and soon it can be."""


def ask(url: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S, patience_s: float = 0.0) -> Any:
    """What the Prefect API at *url* answers to a GET of *path*, or to a POST where there is a *body*.

    A server that is busy is asked again, as Prefect's own client does, until *patience_s* have gone.
    :raises OSError: when nothing answers in time, or with a status of 400 and more. :raises ValueError: when the answer is no JSON.
    """
    data = None if body is None else json.dumps(body).encode()
    import urllib.error
    import urllib.request  # 35 ms that `steelyard status` must not pay for

    request = urllib.request.Request(f"{url.rstrip('/')}{path}", data, {"content-type": "application/json"})  # noqa: S310 (the user's own setting)
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    elif key := os.environ.get("PREFECT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    ends, wait_s = time.monotonic() + patience_s, 0.25
    while True:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != BUSY or time.monotonic() + wait_s > ends:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def answers(url: str) -> bool:
    """Whether a Prefect API is there and well enough to take a run."""
    import urllib.error

    try:
        ask(url, "/health")
    except urllib.error.HTTPError as error:
        # A password that is wrong here is told by whoever uses it. Anything else, 404 above all, is another program on that port.
        return error.code in {401, 403}
    except (OSError, ValueError):
        return False
    return True
