"""How full the disks were: one sample of each at every run, kept in the history. What a forecast is drawn from."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

from steelyard.errors import SteelyardError
from steelyard.file_systems import FileSystem, file_systems, health
from steelyard.forecast import SPAN_S, Sample
from steelyard.history import Event
from steelyard.site import Site

DISK = "disk"
APART_S = 600.0
"""Samples closer together say nothing new."""


def take_samples(site: Site) -> None:
    """One of each file system, where the last is ten minutes old; never a reason to fail, and no folder is made for it."""
    if not site.history.path.parent.is_dir():
        return
    with contextlib.suppress(OSError, SteelyardError):
        for one in file_systems(site):
            last = site.history.events(DISK, one.point, 1)
            if not last or datetime.now(UTC) - datetime.fromisoformat(last[0][0]) > timedelta(seconds=APART_S):
                take_sample(site, one)


def take_sample(site: Site, one: FileSystem) -> None:
    errors = health(one.places[0].path, ask_drive=False).io_errors
    facts = {"free": one.free_bytes, "total": one.total_bytes, "inodes_free": one.inodes_free, "io_errors": errors}
    site.history.event(DISK, one.point, "", "ok", **facts)


def samples_of(events: list[Event], point: str) -> list[Sample]:
    """Those of one file system, from the history's events of the verb "disk"."""
    return [
        Sample(datetime.fromisoformat(one.at), int(str(one.facts["free"])), int(str(one.facts["total"])))
        for one in events
        if one.model == point and "free" in one.facts and "total" in one.facts
    ]


def recent_samples(site: Site) -> list[Event]:
    since = datetime.now(UTC) - timedelta(seconds=SPAN_S)
    return site.history.recent(DISK, since=since.isoformat(), limit=20_000)


def io_errors_before(events: list[Event], point: str) -> int | None:
    """What the kernel had counted at the oldest sample kept; None where nothing counted."""
    counts = [one.facts.get("io_errors") for one in events if one.model == point]
    numbers = [int(str(count)) for count in counts if count is not None]
    return min(numbers) if numbers else None
