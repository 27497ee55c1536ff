"""Prefect's server, asked over HTTP: does it answer, do workers poll, do schedules produce runs, are the automations there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from steelyard import orchestrator
from steelyard.doctor.hub import reason
from steelyard.doctor.row import row
from steelyard.report import Row

POOL = "steelyard"
ZOMBIES = "steelyard: a run that stopped beating has crashed"


def prefect() -> Iterator[Row]:
    url = orchestrator.api_url()
    if url is None:
        why = "none is configured and `steelyard up` does not run: verbs run by themselves, schedules do not"
        yield row("prefect server", "unknown", why, "run: steelyard up")
        return
    try:
        orchestrator.ask(url, "/health")
        version = str(orchestrator.ask(url, "/admin/version"))
    except (OSError, ValueError) as error:
        refused = getattr(error, "code", 0) == 401
        fix = "set PREFECT_API_AUTH_STRING as the server has it" if refused else "run: steelyard up, or correct PREFECT_API_URL"
        yield row("prefect server", "failed", f"{url} does not answer as it should: {reason(error)}", fix)
        return
    yield row("prefect server", "ok", f"{version} at {url}")
    for check, look in (("worker", _worker), ("schedules", _schedules), ("late runs", _late), ("automations", _automations)):
        try:
            yield look(url)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield row(
                check,
                "failed" if getattr(error, "code", 0) == 404 else "unknown",
                f"the server says: {reason(error)}",
                "run: steelyard up",
            )


def _worker(url: str) -> Row:
    """Every pool of ours needs a worker: `steelyard` on one machine, `steelyard-…` for each machine of a fleet."""
    pools = {one["name"]: one for one in _all(url, "/work_pools/filter", {}) if one["name"] == POOL or one["name"].startswith(f"{POOL}-")}
    if not pools:
        return row("worker", "failed", f"there is no work pool {POOL}", "run: steelyard up")
    polls: list[str] = []
    for name, pool in pools.items():
        workers = orchestrator.ask(url, f"/work_pools/{name}/workers/filter", {})
        online = [one["name"] for one in workers if one["status"] == "ONLINE"]
        if pool["is_paused"]:
            return row(
                "worker", "failed", f"the work pool {name} is paused", f"resume it in the UI, or run: prefect work-pool resume {name}"
            )
        if not online:
            why = f"no worker polls the work pool {name}: runs wait for ever"
            return row("worker", "failed", why, f"run: steelyard up, or: prefect worker start --pool {name}")
        polls.append(f"{', '.join(online)} polls {name}")
    return row("worker", "ok", "; ".join(polls[:5]))


def _schedules(url: str) -> Row:
    """A schedule that is on must have produced a run in the future: the server may be healthy and yet never schedule."""
    deployments = list(_all(url, "/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}}))
    wanted = {one["id"]: one["name"] for one in deployments if not one["paused"] and any(s["active"] for s in one["schedules"])}
    if not deployments:
        return row("schedules", "failed", "no deployment of ours is there", "run: steelyard up, or: prefect deploy --all")
    if not wanted:
        return row("schedules", "unknown", f"{len(deployments)} deployments, and no schedule is on", "switch one on in the UI")
    silent = [name for ident, name in wanted.items() if not _next_run(url, ident)]
    if silent:
        why = f"{', '.join(silent)} has a schedule and no run to come: the server does not schedule"
        return row(
            "schedules", "failed", why, "wait a minute after `steelyard up`; then check the pin of sqlalchemy and look at the server's log"
        )
    return row("schedules", "ok", f"{len(wanted)} schedules are on, each with runs to come")


def _next_run(url: str, deployment: str) -> bool:
    runs = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": datetime.now(UTC).isoformat()}}
    found = orchestrator.ask(url, "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": runs, "limit": 1})
    return bool(found)


def _late(url: str) -> Row:
    since = datetime.now(UTC) - timedelta(minutes=5)
    runs = {
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "expected_start_time": {"before_": since.isoformat()},
        "tags": {"all_": ["steelyard"]},
    }
    found = orchestrator.ask(url, "/flow_runs/filter", {"flow_runs": runs, "limit": 50})
    # One that stands behind another of its deployment waits as it should, however long that takes.
    working = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}, "tags": {"all_": ["steelyard"]}}
    busy = {one["deployment_id"] for one in orchestrator.ask(url, "/flow_runs/filter", {"flow_runs": working, "limit": 200})}
    stuck = [one for one in found if one["state_name"] != "AwaitingConcurrencySlot" or one["deployment_id"] not in busy]
    if not stuck:
        return row("late runs", "ok", "none waits longer than five minutes" if not found else f"{len(found)} wait for one that is at work")
    return row(
        "late runs",
        "failed",
        f"{len(stuck)} runs wait, {stuck[0]['name']} first",
        "look at them in the UI: is a run of the same deployment stuck?",
    )


def _automations(url: str) -> Row:
    found = {one["name"]: one["enabled"] for one in _all(url, "/automations/filter", {})}
    if ZOMBIES not in found:
        return row(
            "automations", "failed", "nothing ends the runs of a machine that died", "run: steelyard up, or: python -m deployments.apply"
        )
    off = [name for name, enabled in found.items() if name.startswith("steelyard") and not enabled]
    return row(
        "automations", "unknown" if off else "ok", f"off: {', '.join(off)}" if off else f"{len(found)} are on", "switch them on in the UI"
    )


def _all(url: str, path: str, query: dict[str, Any], page: int = 200) -> Iterator[dict[str, Any]]:
    ends = time.monotonic() + 30
    for offset in range(0, 10_000, page):
        found = orchestrator.ask(url, path, {**query, "limit": page, "offset": offset})
        yield from found
        if len(found) < page or time.monotonic() > ends:
            return
