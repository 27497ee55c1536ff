"""Small plots as inline SVG: numbers in, marked-up text out. Each has a title that says in words what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from markupsafe import Markup, escape

from steelyard.disk import gb
from steelyard.disk_watch import Seen
from steelyard.forecast import Sample
from steelyard.page.picture import CALENDAR_WEEKS, LOOK_DAYS, Drill, Run
from steelyard.page.words import day, span
from steelyard.usage import KINDS

FORECAST_DAYS = 45.0


def _svg(width: float, height: float, title: str, body: Iterable[str], kind: str, *, stretch: bool = False) -> Markup:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    inside = "".join(body)
    text = (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}"{ratio}>'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )
    return Markup(text)  # noqa: S704 (every word in it is escaped above or below)


def slug_of(kind: str) -> str:
    return kind.lower().replace(" ", "-")


def disk_bar(seen: Seen, warn_bytes: int, error_bytes: int) -> Markup:
    """What is whose, from left to right; what is blank is free. Two strokes show where the warning and the error begin."""
    where, total = seen.where, max(1, seen.where.total_bytes)
    parts = [(kind, seen.usage.kinds[kind]) for kind in KINDS if seen.usage.kinds[kind]]
    if where.reserved_bytes:
        parts.append(("reserved", where.reserved_bytes))  # type: ignore[arg-type]
    at, body = 0.0, []
    for kind, size in parts:
        width = max(0.0, min(1000 * size / total, 1000 - at))
        body.append(
            f'<rect class="k-{slug_of(kind)}" x="{at:.2f}" y="0" width="{width:.2f}" height="28"><title>{kind}: {gb(size)}</title></rect>'
        )
        at += width
    for limit, name in ((warn_bytes, "warn"), (error_bytes, "error")):
        if limit < total:
            x = 1000 * (1 - limit / total)
            body.append(f'<line class="limit {name}" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="28"/>')
    told = ", ".join(f"{kind} {gb(size)}" for kind, size in parts)
    return _svg(1000, 28, f"{where.point}: {told}; {gb(where.free_bytes)} free of {gb(where.total_bytes)}", body, "bar", stretch=True)


def free_over_time(seen: Seen, samples: Sequence[Sample], warn_bytes: int, error_bytes: int) -> Markup:
    """Free space over time, and where the line leads with its 95 % interval; the limits are dashed."""
    width, height, left, right, top, bottom = 360.0, 120.0, 54.0, 6.0, 8.0, 18.0
    trend = seen.trend
    first, last = samples[0].at, samples[-1].at
    ahead = min(FORECAST_DAYS, max(3.0, 1.15 * trend.days_left)) if trend and trend.days_left else (7.0 if trend else 0.0)
    ends = last + timedelta(days=ahead)
    limits = [(size, name) for size, name in ((warn_bytes, "warn"), (error_bytes, "error")) if size < seen.where.total_bytes]
    highest = 1.1 * max(*(one.free_bytes for one in samples), *(size for size, _ in limits), 1)
    length = max((ends - first).total_seconds(), 1.0)

    def x(at: datetime) -> float:
        return left + (width - left - right) * (at - first).total_seconds() / length

    def y(free: float) -> float:
        return top + (height - top - bottom) * (1 - min(max(free, 0.0), highest) / highest)

    body = [f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    for limit, name in limits:
        body.append(f'<line class="limit {name}" x1="{left}" x2="{width - right}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>')
    if trend is not None:
        now = float(samples[-1].free_bytes)

        def cone(per_day: float) -> str:
            # Cut where it meets the axis, so that the line does not bend.
            days = min(ahead, now / -per_day) if per_day < 0 else ahead
            return f"{x(last + timedelta(days=days)):.1f},{y(now + per_day * days):.1f}"

        low, high, end = cone(trend.low_per_day_bytes), cone(trend.high_per_day_bytes), f"{x(ends):.1f},{y(0):.1f}"
        corner = (
            end
            if trend.low_per_day_bytes < 0 and now / -trend.low_per_day_bytes < ahead and trend.high_per_day_bytes > -now / ahead
            else ""
        )
        body.append(f'<polygon class="cone" points="{x(last):.1f},{y(now):.1f} {low} {corner} {high}"/>')
        body.append(f'<polyline class="ahead" points="{x(last):.1f},{y(now):.1f} {cone(trend.per_day_bytes)}"/>')
    points = " ".join(f"{x(one.at):.1f},{y(one.free_bytes):.1f}" for one in samples)
    body.append(f'<polyline class="past" points="{points}"/>')
    body.append(f'<circle class="now" cx="{x(last):.1f}" cy="{y(samples[-1].free_bytes):.1f}" r="2.6"/>')
    body.append(f'<text x="{left - 4}" y="{y(highest / 1.1) + 4:.1f}" text-anchor="end">{gb(highest / 1.1)}</text>')
    body.append(f'<text x="{left - 4}" y="{y(0) + 3:.1f}" text-anchor="end">0</text>')
    body.append(f'<text x="{left}" y="{height - 4}">{_short(first)}</text>')
    if ahead or len(samples) > 1:
        body.append(f'<text x="{width - right}" y="{height - 4}" text-anchor="end">{_short(ends)}</text>')
    told = f"Free space on {seen.where.point} from {day(first)} to {day(last)}: now {gb(samples[-1].free_bytes)}"
    return _svg(width, height, told, body, "plot")


def _short(at: datetime) -> str:
    return f"{at.astimezone(UTC):%-d %b}"


def drill_dots(drills: Sequence[Drill]) -> Markup:
    """How long the last drills took, oldest at the left; one that failed is a cross on the line."""
    width, height, foot = 150.0, 34.0, 30.0
    took = [one.seconds for one in drills if one.ok and one.seconds is not None]
    most = max(took, default=1.0) or 1.0
    step = (width - 10) / max(len(drills) - 1, 1)
    body = [f'<line class="axis" x1="0" x2="{width}" y1="{foot}" y2="{foot}"/>']
    places = [(5 + number * step if len(drills) > 1 else width / 2, one) for number, one in enumerate(drills)]
    line = " ".join(f"{x:.1f},{foot - 24 * one.seconds / most:.1f}" for x, one in places if one.ok and one.seconds is not None)
    body.append(f'<polyline class="past" points="{line}"/>')
    for x, one in places:
        told = f"<title>{escape(one.copy)}, {day(one.at)}: {span(one.seconds) if one.ok else 'failed'}</title>"
        if one.ok and one.seconds is not None:
            body.append(f'<circle class="now" cx="{x:.1f}" cy="{foot - 24 * one.seconds / most:.1f}" r="2.4">{told}</circle>')
        else:
            body.append(f'<path class="cross" d="M{x - 3:.1f} {foot - 3}l6 6m0 -6l-6 6">{told}</path>')
    failed = sum(not one.ok for one in drills)
    told = f"{len(drills)} drills, the last {span(drills[-1].seconds) if drills[-1].ok else 'failed'}" + (
        f", {failed} failed" if failed else ""
    )
    return _svg(width, height, told, body, "dots")


def look_strip(days: Mapping[str, str], today: date) -> Markup:
    """A mark for each of the last days: tall where what was looked at was whole, a cross where it was not, a dot where nothing was looked at."""
    good, bad, none = [], [], []
    for number in range(LOOK_DAYS):
        found = days.get((today - timedelta(days=LOOK_DAYS - 1 - number)).isoformat())
        x = number * 3
        if found == "ok":
            good.append(f"M{x} 3h2v12h-2z")
        elif found == "bad":
            bad.append(f"M{x} 1h2v16h-2z")
        else:
            none.append(f"M{x} 8h2v2h-2z")
    body = [f'<path class="{name}" d="{"".join(path)}"/>' for name, path in (("none", none), ("good", good), ("bad", bad)) if path]
    told = f"The last {LOOK_DAYS} days: looked at on {len(good) + len(bad)}, something was not whole on {len(bad)}"
    return _svg(LOOK_DAYS * 3, 18, told, body, "strip")


def calendar(runs: Sequence[Run], today: date) -> Markup:
    """Twelve weeks, a column each, Monday at the top; darker with more runs, a cross where one failed, an outline around today."""
    start = today - timedelta(days=today.weekday(), weeks=CALENDAR_WEEKS - 1)
    by_day: dict[date, list[Run]] = {}
    for run in runs:
        by_day.setdefault(run.at.astimezone(UTC).date(), []).append(run)
    size, left, top = 20, 34, 16
    body, month = [], 0
    for week in range(CALENDAR_WEEKS):
        monday = start + timedelta(weeks=week)
        if monday.month != month and (week < CALENDAR_WEEKS - 1 or not month):
            month = monday.month
            body.append(f'<text x="{left + week * size}" y="11">{monday:%b}</text>')
        for weekday in range(7):
            when = monday + timedelta(days=weekday)
            if when > today:
                continue
            of, x, y = by_day.get(when, []), left + week * size, top + weekday * size
            failed = [run for run in of if not run.ok]
            depth = 0 if not of else 1 if len(of) < 3 else 2 if len(of) < 8 else 3
            told = f"{day(datetime(when.year, when.month, when.day, tzinfo=UTC))}: {_runs_told(of, failed)}"
            mark = "".join((" failed" if failed else "", " today" if when == today else ""))
            body.append(f'<rect class="d{depth}{mark}" x="{x}" y="{y}" width="17" height="17" rx="3"><title>{escape(told)}</title></rect>')
            if failed:
                body.append(f'<path class="cross" d="M{x + 5} {y + 5}l7 7m0 -7l-7 7"/>')
    for weekday, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"), (6, "Sun")):
        body.append(f'<text x="0" y="{top + weekday * size + 13}">{name}</text>')
    bad = sum(not run.ok for run in runs)
    return _svg(left + CALENDAR_WEEKS * size, top + 7 * size, f"{len(runs)} runs in twelve weeks, {bad} of them not well", body, "calendar")


def _runs_told(of: Sequence[Run], failed: Sequence[Run]) -> str:
    if not of:
        return "no run"
    names = ", ".join(sorted({run.verb for run in of}))
    return f"{len(of)} run{'s' if len(of) != 1 else ''} ({names})" + (f", {len(failed)} not well" if failed else "")
