"""retain: which snapshots of a replica stay. Pure: it reads no disk and deletes nothing; `clean` carries out what it plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Snapshot:
    """One commit of a model in one replica. *at* is when it was sealed. *verified*: what its last verification said, None where there was none."""

    commit: str
    at: datetime
    verified: bool | None = None


@dataclass(frozen=True)
class Keep:
    """How many to keep, by restic's rules; 0 is none of that kind."""

    last: int = 3
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True)
class RetentionPlan:
    """*stay*: commit -> the reasons why; *go*: the rest, oldest first."""

    stay: dict[str, tuple[str, ...]]
    go: tuple[Snapshot, ...]


def plan_retention(snapshots: Sequence[Snapshot], keep: Keep, *, current: str = "") -> RetentionPlan:
    """Split *snapshots* (any order) into what stays and what goes.

    The newest verified snapshot always stays, and so does *current* (the locked commit). One that failed its last verification never counts
    towards *keep*; it stays as evidence until it is repaired. Where none is verified, all stay: the last proven copy may be among them.
    Rules: keep-last, -daily, -weekly, -monthly as restic's forget (restic doc/060_forget.rst): the newest of each of the last n days, weeks (ISO)
    and months that have one, and the oldest of all as long as a rule has not found its n. Days are UTC.
    """
    newest_first = sorted(snapshots, key=lambda one: (one.at, one.commit), reverse=True)
    reasons: dict[str, list[str]] = {one.commit: [] for one in newest_first}
    for one in newest_first:
        if one.commit == current:
            reasons[one.commit].append("the locked commit")
        if one.verified is False:
            reasons[one.commit].append("failed its last verification: to be repaired")
    proven = next((one for one in newest_first if one.verified), None)
    if proven is None:
        for one in newest_first:
            reasons[one.commit].append("none here is verified")
    else:
        reasons[proven.commit].append("the newest verified one")
    counting = [one for one in newest_first if one.verified is not False]
    for name, count, period in _rules(keep):
        for commit in _kept_by(counting, count, period):
            reasons[commit].append(name)
    stay = {commit: tuple(why) for commit, why in reasons.items() if why}
    return RetentionPlan(stay, tuple(one for one in reversed(newest_first) if one.commit not in stay))


Period = Callable[[Snapshot], object]


def _rules(keep: Keep) -> list[tuple[str, int, Period]]:
    return [
        ("last", keep.last, lambda one: one.commit),
        ("daily", keep.daily, lambda one: one.at.astimezone(UTC).date()),
        ("weekly", keep.weekly, lambda one: one.at.astimezone(UTC).isocalendar()[:2]),
        ("monthly", keep.monthly, lambda one: (one.at.astimezone(UTC).year, one.at.astimezone(UTC).month)),
    ]


def _kept_by(newest_first: Sequence[Snapshot], count: int, period: Period) -> list[str]:
    kept: list[str] = []
    last: object = None
    for number, one in enumerate(newest_first):
        # restic keeps the oldest too while a rule has counts left: a young repository would else lose its beginning.
        if len(kept) < count and (period(one) != last or number == len(newest_first) - 1):
            kept.append(one.commit)
            last = period(one)
    return kept
