"""What could be restored now: for each model the age of the last proof that a copy is whole and of the last drill that brought it back.

Never what once succeeded: a copy that is not there today counts for nothing, whatever the history says. A model is *green* when a replica
that is whole as it lies now was proven, and a drill brought the locked revision back from one, both within restorable_within; *amber* up to
twice that, or when the drill was of an earlier revision; *red* beyond, when the last drill failed, and for "never". *unknown* is what can't be
looked at: a drive that is away, a file that changed since it was proven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

State = Literal["green", "amber", "unknown", "red"]
_ORDER: tuple[State, ...] = ("green", "amber", "unknown", "red")
AMBER = 2.0
"""Up to this many times the limit a proof or drill is amber, then red."""


def worst_state(*states: State) -> State:
    return max(states, key=_ORDER.index, default="red")


def by_age(age_s: float | None, limit_s: float) -> State:
    """None is never, and never is red."""
    if age_s is None:
        return "red"
    return "green" if age_s <= limit_s else "amber" if age_s <= AMBER * limit_s else "red"


@dataclass(frozen=True)
class Drilled:
    """The last drill of a model from a copy. *at* is ISO 8601 in UTC."""

    at: str
    ok: bool
    commit: str
    seconds: float | None = None


@dataclass(frozen=True)
class Part:
    """One half of the answer for a replica: its proof or its drill. *age_s* None: never."""

    state: State
    at: str | None
    age_s: float | None
    why: str


@dataclass(frozen=True)
class FromCopy:
    """What one replica could bring back now."""

    copy: str
    state: State
    why: str
    proof: Part
    drill: Part
    seconds: float | None
    """How long the last good drill from it took."""

    def as_json(self) -> dict[str, Any]:
        return {
            "copy": self.copy,
            "state": self.state,
            "why": self.why,
            "proof_state": self.proof.state,
            "proof_at": self.proof.at,
            "proof_age_s": _whole(self.proof.age_s),
            "drill_state": self.drill.state,
            "drill_at": self.drill.at,
            "drill_age_s": _whole(self.drill.age_s),
            "drill_seconds": self.seconds,
        }


def _whole(age_s: float | None) -> int | None:
    return None if age_s is None else round(age_s)


def age_s(at: str | None, now: datetime) -> float | None:
    return None if at is None else max(0.0, (now - datetime.fromisoformat(at)).total_seconds())


def from_copy(name: str, seen: Mapping[str, Any], drills: Sequence[Drilled], *, commit: str, limit_s: float, now: datetime) -> FromCopy:
    """*seen*: today's look at the copy (verdict, last_proven, away, why). *drills*: of the model from this copy, latest first."""
    proof = _proof(seen, limit_s, now)
    drill, seconds = _drill(drills, commit, limit_s, now)
    if proof.state == "red":
        return FromCopy(name, "red", proof.why, proof, drill, seconds)
    state = worst_state(proof.state, drill.state)
    why = "; ".join(one.why for one in (proof, drill) if one.why and one.state == state) or proof.why or drill.why
    return FromCopy(name, state, why, proof, drill, seconds)


def _proof(seen: Mapping[str, Any], limit_s: float, now: datetime) -> Part:
    at = seen.get("last_proven")
    age = age_s(at, now)
    by_time = by_age(age, limit_s)
    verdict = seen["verdict"]
    if seen.get("away"):
        # A drive on the shelf can't be looked at; one that was proven too long ago, or never, is no hope either.
        why = (
            "away, and never proven"
            if at is None
            else "away, and proven too long ago"
            if by_time == "red"
            else "away: it can't be looked at"
        )
        return Part("red" if by_time == "red" else "unknown", at, age, why)
    if verdict in {"missing", "corrupt", "unreadable", "stale"}:
        return Part("red", at, age, {"missing": "nothing whole is there now", "stale": "it holds an older revision"}.get(verdict, verdict))
    if verdict != "ok":
        return Part("red", at, age, "never proven") if at is None else Part("unknown", at, age, "changed since it was last proven")
    return Part(by_time, at, age, "" if by_time == "green" else "never proven" if at is None else "proven too long ago")


def _drill(drills: Sequence[Drilled], commit: str, limit_s: float, now: datetime) -> tuple[Part, float | None]:
    good = next((one for one in drills if one.ok), None)
    if good is None:
        why = "the drill failed" if drills else "never drilled"
        return Part("red", None, None, why), None
    age = age_s(good.at, now)
    if not drills[0].ok:
        return Part("red", good.at, age, "the last drill failed"), good.seconds
    state = by_age(age, limit_s)
    if state != "green":
        return Part(state, good.at, age, "drilled too long ago"), good.seconds
    if good.commit and good.commit != commit:
        return Part("amber", good.at, age, "the last drill brought back another revision"), good.seconds
    return Part("green", good.at, age, ""), good.seconds


def of_model(copies: Sequence[FromCopy], *, limit_s: float, held: bool, configured: bool) -> dict[str, Any]:
    """The answer for a model: that of the replica that would bring it back best. *configured*: whether the config has replicas at all."""
    if not held:
        return _answer("red", "never downloaded", limit_s, None, copies)
    if not configured:
        return _answer("red", "no replica is in the config: nothing but the Hub could bring it back", limit_s, None, copies)
    best = min(
        copies, key=lambda one: (_ORDER.index(one.state), one.proof.age_s if one.proof.age_s is not None else float("inf")), default=None
    )
    if best is None:
        return _answer("red", "no replica holds it", limit_s, None, copies)
    return _answer(best.state, f"{best.copy}: {best.why}" if best.why else "", limit_s, best, copies)


def _answer(state: State, why: str, limit_s: float, best: FromCopy | None, copies: Sequence[FromCopy]) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("copy", "proof_at", "proof_age_s", "drill_at", "drill_age_s", "drill_seconds"))
    told = {**empty, **(best.as_json() if best else {})}
    return {**told, "state": state, "why": why, "limit_s": limit_s, "copies": {one.copy: one.as_json() for one in copies}}
