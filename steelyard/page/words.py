"""What a state is called and looks like where colour alone must not tell, and times as people say them."""

from __future__ import annotations

from datetime import UTC, datetime

GLYPHS = {"green": "✓", "amber": "!", "unknown": "?", "red": "✗"}
STATE_WORDS = {"green": "yes", "amber": "late", "unknown": "unknown", "red": "no"}
VERDICT_STATES = {
    "ok": "green",
    "stale": "amber",
    "stray": "amber",
    "unverified": "unknown",
    "missing": "red",
    "corrupt": "red",
    "unreadable": "red",
}


def _time(at: str | datetime) -> datetime:
    return (datetime.fromisoformat(at) if isinstance(at, str) else at).astimezone(UTC)


def day(at: str | datetime | None) -> str:
    """ "12 Dec 2026"; "" for None."""
    return f"{_time(at):%-d %b %Y}" if at else ""


def moment(at: str | datetime | None) -> str:
    """ "12 Dec 2026, 02:30 UTC"; "never" for None."""
    return f"{_time(at):%-d %b %Y, %H:%M} UTC" if at else "never"


def ago(age_s: float | None) -> str:
    """ "4 h", "12 d"; "never" for None."""
    if age_s is None:
        return "never"
    if age_s < 90:
        return f"{age_s:.0f} s"
    if age_s < 5400:
        return f"{age_s / 60:.0f} min"
    return f"{age_s / 3600:.0f} h" if age_s < 2 * 86400 else f"{age_s / 86400:.0f} d"


def span(seconds: float | None) -> str:
    """How long something took: "1.9 s", "3.4 min"; "" for None."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
