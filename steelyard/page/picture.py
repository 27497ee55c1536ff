"""Everything that the page shows, gathered once: the status, the disks with their past, drills, looks, runs and what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from steelyard import orchestrator
from steelyard.config import DiskConfig
from steelyard.disk_watch import Seen, look_at_disk
from steelyard.errors import SteelyardError
from steelyard.file_systems import file_systems
from steelyard.forecast import Sample, thinned
from steelyard.inventory import host_name
from steelyard.report import Report
from steelyard.runs import RUN
from steelyard.samples import recent_samples, samples_of
from steelyard.site import Site
from steelyard.status import status

CALENDAR_WEEKS = 12
LOOK_DAYS = 60
MOST_DRILLS = 30
_ORDER = {"red": 0, "unknown": 1, "amber": 2, "green": 3}
ASK_S = 2.0


@dataclass(frozen=True)
class Run:
    """A verb that ran. *at* is when it ended."""

    at: datetime
    verb: str
    ok: bool
    code: int
    seconds: float


@dataclass(frozen=True)
class NextRun:
    at: datetime
    name: str


@dataclass(frozen=True)
class Drill:
    at: datetime
    copy: str
    ok: bool
    seconds: float | None


@dataclass(frozen=True)
class Disk:
    seen: Seen
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Picture:
    """*models* are those of the status, worst first. *days*: model -> day -> worst verdict of that day's looks, for LOOK_DAYS days."""

    at: datetime
    host: str
    store: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    copies: Sequence[str]
    errors: Sequence[SteelyardError]
    disks: Sequence[Disk]
    limits: DiskConfig
    drills: Mapping[str, Sequence[Drill]]
    days: Mapping[str, Mapping[str, str]]
    runs: Sequence[Run]
    next_runs: Sequence[NextRun]
    why_no_next: str


def gather(site: Site, report: Report | None = None) -> Picture:
    """Look at everything now. Asks the Prefect API of this machine what comes next, where one is configured; no other network."""
    report = report or status(site)
    at = datetime.now(UTC)
    models = sorted(
        report.extra.get("models", ()), key=lambda model: (_ORDER[model["restorable"]["state"]], not bad_copies(model), model["model"])
    )
    next_runs, why = upcoming()
    events = recent_samples(site)
    with site.history.reading():
        days = {model["model"]: _days(site, model["model"], at) for model in models}
        return Picture(
            at,
            host_name(site),
            report.extra["store"],
            models,
            list(dict.fromkeys(copy for model in models for copy in model["copies"])),
            report.errors,
            [Disk(look_at_disk(site, one, keep=False), thinned(samples_of(events, one.point))) for one in file_systems(site)],
            site.config.disk,
            _drills(site),
            days,
            _runs(site, at),
            next_runs,
            why,
        )


def bad_copies(model: Mapping[str, Any]) -> list[str]:
    """Copies of *model* that are not whole as they lie now; one that is away or was changed is unknown and not bad."""
    return [copy for copy, seen in model["copies"].items() if seen["verdict"] in {"missing", "corrupt", "unreadable"}]


def _days(site: Site, model: str, now: datetime) -> dict[str, str]:
    """By day (ISO): "bad" where a look found a file not whole, "ok" where all looks found theirs whole."""
    found: dict[str, str] = {}
    for at, _, verdict, _ in site.history.looks(model, since=(now - timedelta(days=LOOK_DAYS)).isoformat()):
        day = at[:10]
        found[day] = "bad" if verdict not in {"ok", "unverified", "stray"} or found.get(day) == "bad" else "ok"
    return found


def _drills(site: Site) -> dict[str, list[Drill]]:
    """By model, oldest first."""
    found: dict[str, list[Drill]] = {}
    for one in site.history.recent("drill"):
        of = found.setdefault(one.model, [])
        if len(of) < MOST_DRILLS:
            seconds = one.facts.get("seconds")
            took = float(str(seconds)) if seconds is not None else None
            of.append(Drill(datetime.fromisoformat(one.at), one.copy, one.outcome == "ok", took))
    return {model: of[::-1] for model, of in found.items()}


def _runs(site: Site, now: datetime) -> list[Run]:
    """Latest first, as far back as the calendar goes."""
    since = now - timedelta(weeks=CALENDAR_WEEKS)
    return [
        Run(
            datetime.fromisoformat(one.at),
            str(one.facts.get("verb", "")),
            one.outcome == "ok",
            int(str(one.facts.get("exit_code", 0))),
            float(str(one.facts.get("seconds", 0.0))),
        )
        for one in site.history.recent(RUN, since=since.isoformat(), limit=20_000)
    ]


def upcoming() -> tuple[list[NextRun], str]:
    """The next run of each deployment of ours, soonest first; or none, and why."""
    url = orchestrator.api_url()
    if url is None:
        return [], "No schedule runs: start it with steelyard up"
    try:
        deployments = orchestrator.ask(url, "/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}}, timeout_s=ASK_S)
        names = {one["id"]: f"{str(one['entrypoint']).rpartition('.')[2].replace('_', '-')} ({one['name']})" for one in deployments}
        wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": datetime.now(UTC).isoformat()}}
        asked = {"deployments": {"id": {"any_": list(names)}}, "flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        found: dict[str, NextRun] = {}
        for one in orchestrator.ask(url, "/flow_runs/filter", asked, timeout_s=ASK_S) if names else ():
            at = datetime.fromisoformat(one["expected_start_time"].replace("Z", "+00:00"))
            found.setdefault(one["deployment_id"], NextRun(at, names[one["deployment_id"]]))
    except (OSError, ValueError, KeyError, TypeError):
        return [], "The Prefect API that is configured does not answer"
    return sorted(found.values(), key=lambda one: one.at), "" if found else "No schedule is on"
