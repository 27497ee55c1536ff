"""Runs that are under way when `up` begins or ends: none stays down as running that is not, and none keeps its deployment's slot.

Prefect hears of a run's end from its worker. A worker that is told to end kills its runs and says nothing; one that died with its machine
can't. The heartbeats that are missed tell in the end, after nine minutes in which no other run of the deployment begins.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steelyard import orchestrator

PATIENCE_S = 10.0
"""How long a server that is busy with SQLite is asked again."""
_UNDER_WAY = ["PENDING", "RUNNING", "CANCELLING"]
_MARK = b"PREFECT__FLOW_RUN_ID="
GONE = "Its process was gone when `up` started again; the next run goes on from what is on disk."


def alive() -> set[str]:
    """Ids of the runs that a process of this user on this machine works on."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            found |= {one.removeprefix(_MARK).decode("ascii", "replace") for one in environment.split(b"\0") if one.startswith(_MARK)}
    return found


def settle(api_url: str, pool: str, ours: str) -> list[str]:
    """Before the worker starts: end what no process works on, offer again what never began. The names of those runs.

    Does nothing where another worker than *ours* polls the pool: its runs are not on this machine. :raises OSError, ValueError, KeyError:
    """
    workers = orchestrator.ask(api_url, f"/work_pools/{pool}/workers/filter", {}, patience_s=PATIENCE_S)
    if any(one["status"] == "ONLINE" and one["name"] != ours for one in workers):
        return []
    here, names = alive(), []
    for run in _under_way(api_url, pool):
        if run["id"] in here:
            continue  # its `up` was killed and it goes on
        if run["state_type"] == "PENDING":
            state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "It never began; its worker was gone."}
        else:
            state = {"type": "CANCELLED" if run["state_type"] == "CANCELLING" else "CRASHED", "message": GONE}
        _set(api_url, run["id"], state)
        names.append(str(run["name"]))
    return names


def cancel(api_url: str, pool: str, within_s: float) -> None:
    """Before the worker ends: cancel what it works on, as the UI does, and wait until that is so. :raises OSError, ValueError, KeyError:"""
    ends = time.monotonic() + within_s
    asked: set[str] = set()
    here = alive()
    while runs := [run for run in _under_way(api_url, pool) if run["id"] in here]:
        for run in runs:
            if run["id"] not in asked and run["state_type"] != "CANCELLING":
                _set(api_url, run["id"], {"type": "CANCELLING", "name": "Cancelling"})
            asked.add(run["id"])
        if time.monotonic() > ends:
            return
        time.sleep(0.3)


def _under_way(api_url: str, pool: str) -> Iterable[dict[str, Any]]:
    query = {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": {"state": {"type": {"any_": _UNDER_WAY}}}, "limit": 200}
    found: list[dict[str, Any]] = orchestrator.ask(api_url, "/flow_runs/filter", query, patience_s=PATIENCE_S)
    return found


def _set(api_url: str, run: str, state: dict[str, str]) -> None:
    orchestrator.ask(api_url, f"/flow_runs/{run}/set_state", {"state": state, "force": True}, patience_s=PATIENCE_S)
