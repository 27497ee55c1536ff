"""When will it be full: a straight line through what was free, with its uncertainty. A line is all that such samples carry; it says so itself."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

DAY_S = 86_400.0
SPAN_S = 60 * DAY_S
"""Older samples say little about next month."""
BUCKET_S = 6 * 3600.0
"""One sample of each six hours: those of one busy evening are no evidence of their own."""
LEAST_SAMPLES = 5
LEAST_SPAN_S = 2 * DAY_S
FARTHEST_DAYS = 3650.0

_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 15: 2.13, 20: 2.09, 30: 2.04, 60: 2.0}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom; between two the smaller number of degrees is taken."""


@dataclass(frozen=True)
class Sample:
    at: datetime
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Forecast:
    """*per_day_bytes*: how free space changes; *low*, *high* are the ends of its 95 % interval. Days are from the last sample on.

    *days_left* is None where free space does not shrink; *latest_days* is None where the interval allows that it never runs out.
    """

    per_day_bytes: float
    low_per_day_bytes: float
    high_per_day_bytes: float
    days_left: float | None
    soonest_days: float | None
    latest_days: float | None
    samples: int
    span_days: float
    last: datetime

    @property
    def is_sure(self) -> bool:
        """Whether it shrinks at both ends of the interval."""
        return self.high_per_day_bytes < 0

    def day(self, days: float | None) -> datetime | None:
        return self.last + timedelta(days=days) if days is not None and days < FARTHEST_DAYS else None

    def as_json(self) -> dict[str, Any]:
        def told(days: float | None) -> str | None:
            day = self.day(days)
            return day.date().isoformat() if day else None

        return {
            "per_day_bytes": round(self.per_day_bytes),
            "per_day_low_bytes": round(self.low_per_day_bytes),
            "per_day_high_bytes": round(self.high_per_day_bytes),
            "full_on": told(self.days_left),
            "full_soonest": told(self.soonest_days),
            "full_latest": told(self.latest_days),
            "samples": self.samples,
            "span_days": round(self.span_days, 1),
        }


def forecast(samples: Sequence[Sample]) -> Forecast | None:
    """From *samples* in any order; None where they are too few or too close together to say anything.

    Samples before the file system had its present size are of another disk and not used.
    """
    used = thinned(samples)
    if len(used) < LEAST_SAMPLES or (used[-1].at - used[0].at).total_seconds() < LEAST_SPAN_S:
        return None
    first, last = used[0], used[-1]
    xs = [(one.at - first.at).total_seconds() / DAY_S for one in used]
    ys = [float(one.free_bytes) for one in used]
    slope, error = _line(xs, ys)
    reach = _quantile(len(xs) - 2) * error
    low, high = slope - reach, slope + reach

    def days(per_day: float) -> float | None:
        return ys[-1] / -per_day if per_day < 0 else None

    return Forecast(slope, low, high, days(slope), days(low), days(high), len(xs), xs[-1], last.at)


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """The last sample of each six hours, oldest first, of the last 60 days and of the present size."""
    ordered = sorted(samples, key=lambda one: one.at)
    if not ordered:
        return []
    newest = ordered[-1]
    kept: dict[int, Sample] = {}
    for one in ordered:
        if one.total_bytes == newest.total_bytes and (newest.at - one.at).total_seconds() <= SPAN_S:
            kept[int(one.at.timestamp() // BUCKET_S)] = one
    return list(kept.values())


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line, and its standard error."""
    count = len(xs)
    mean_x, mean_y = math.fsum(xs) / count, math.fsum(ys) / count
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, math.sqrt(rest / (count - 2) / spread)


def _quantile(degrees: int) -> float:
    known = list(_T95)
    return _T95[known[max(0, bisect_left(known, degrees + 1) - 1)]]
