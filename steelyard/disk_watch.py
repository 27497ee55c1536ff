"""disk-watch: how full each file system is, what is whose, when it runs out, and whether it tells of errors. Reads no weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from steelyard.config import DiskConfig
from steelyard.disk import gb
from steelyard.file_systems import FileSystem, Health, file_systems, health
from steelyard.forecast import DAY_S, Forecast, forecast
from steelyard.report import Report, Row
from steelyard.samples import io_errors_before, recent_samples, samples_of, take_sample
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.usage import Usage, usage

log = logging.getLogger("steelyard")

Level = Literal["ok", "warning", "error"]
_ORDER: tuple[Level, ...] = ("ok", "warning", "error")
ERROR_SHARE = 0.2
"""Inodes are an error at this share of what they are a warning at."""


@dataclass(frozen=True)
class Seen:
    """One file system as it is now, where it is heading, and what it tells."""

    where: FileSystem
    usage: Usage
    trend: Forecast | None
    health: Health
    errors_before: int | None
    level: Level
    why: tuple[str, ...]
    failing: bool
    """Whether the drive or the kernel tells of errors, and not only of little room."""

    def as_json(self) -> dict[str, Any]:
        return {
            **self.where.as_json(),
            "verdict": self.level,
            "why": "; ".join(self.why),
            "whose": {kind: size for kind, size in self.usage.kinds.items() if size},
            "complete": self.usage.complete,
            "shared_bytes": self.usage.shared_bytes,
            "trend": self.trend.as_json() if self.trend else None,
            "full_on": self.trend.as_json()["full_on"] if self.trend else None,
            "io_errors": self.health.io_errors,
            "smart": self.health.smart,
            "failing": self.failing,
        }


def disk_watch(site: Site, *, run: Run = run_here) -> Report:
    """One row for each file system that holds anything of ours; a sample of it is kept. Exit code 1 where one is at its error level."""
    report = Report("disk-watch")
    for where in file_systems(site):
        with report.collecting():
            seen = run(look_at_disk, site, where)
            report.rows.append(Row(path=seen.where.point, facts=seen.as_json(), exit_code=1 if seen.level == "error" else 0))
            if seen.level != "ok":
                log.log(logging.ERROR if seen.level == "error" else logging.WARNING, "%s: %s", where.point, "; ".join(seen.why))
    return report.close()


def look_at_disk(site: Site, where: FileSystem, *, keep: bool = True) -> Seen:
    """Step: one file system. *keep*: add a sample to the history first."""
    if keep and site.history.path.parent.is_dir():
        take_sample(site, where)
    events = recent_samples(site)
    trend = forecast(samples_of(events, where.point))
    before = io_errors_before(events, where.point)
    told = health(where.places[0].path)
    level, why, failing = judged(where, trend, told, before, site.config.disk)
    return Seen(where, usage(site, where), trend, told, before, level, why, failing)


def judged(
    where: FileSystem, trend: Forecast | None, told: Health, errors_before: int | None, limits: DiskConfig
) -> tuple[Level, tuple[str, ...], bool]:
    """The level, why, and whether the drive itself is the reason."""
    found: list[tuple[Level, str]] = []
    failing = False
    free = where.free_bytes
    if where.total_bytes:  # some drivers in user space tell no sizes at all
        if free < limits.error_free:
            found.append(("error", f"{gb(free)} free, less than {gb(limits.error_free)}"))
        elif free < limits.warn_free:
            found.append(("warning", f"{gb(free)} free, less than {gb(limits.warn_free)}"))
    percent = where.inodes_free_percent
    if percent is not None and percent < limits.warn_inodes:
        level: Level = "error" if percent < ERROR_SHARE * limits.warn_inodes else "warning"
        found.append((level, f"{percent:g} % of its inodes free"))
    if trend is not None and trend.is_sure and trend.days_left is not None and trend.days_left * DAY_S < limits.warn_days:
        found.append(("warning", f"full in {trend.days_left:.0f} days if it goes on like this"))
    if where.read_only and any(place.name in {"models", "hf_home"} for place in where.places):
        failing = True
        found.append(("error", "mounted read-only"))
    if told.smart == "failing":
        failing = True
        found.append(("error", "the drive says of itself that it is failing (SMART)"))
    if told.io_errors and (errors_before is None or told.io_errors > errors_before):
        failing = True
        found.append(("error", f"the kernel has counted {told.io_errors - (errors_before or 0)} more I/O errors"))
    levels: list[Level] = [level for level, _ in found]
    worst: Level = max(levels, key=_ORDER.index, default="ok")
    return worst, tuple(why for _, why in found), failing
