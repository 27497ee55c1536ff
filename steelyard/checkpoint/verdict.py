"""One honest answer per file, aspect by aspect: container, trust, bytes, values, fit. The whole is never better than the worst that is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from steelyard.checkpoint.inspection import Inspection
from steelyard.checkpoint.load import LoadReport
from steelyard.checkpoint.reasons import Reason
from steelyard.checkpoint.signature import Fit

AspectName = Literal["container", "trust", "bytes", "values", "fit"]
State = Literal["ok", "bad", "unknown"]


@dataclass(frozen=True, slots=True)
class Aspect:
    """One question and its answer; *code* is a reason code or says why it is unknown; *seconds* is what asking cost."""

    name: AspectName
    state: State
    code: str = ""
    sentence: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {"aspect": self.name, "state": self.state, "code": self.code, "sentence": self.sentence, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class Judgement:
    aspects: tuple[Aspect, ...]

    @property
    def whole(self) -> State:
        """bad if anything is; else unknown if anything is; ok only when every aspect was looked at."""
        states = {aspect.state for aspect in self.aspects}
        return "bad" if "bad" in states else "unknown" if "unknown" in states else "ok"

    def as_json(self) -> dict[str, Any]:
        return {"whole": self.whole, "aspects": [aspect.as_json() for aspect in self.aspects]}


def judge(inspection: Inspection, report: LoadReport | None = None, fit: Fit | None = None, *, digest_ok: bool | None = None) -> Judgement:
    """Put together what is known. *digest_ok* is whether the bytes have the digest on record; None when nobody looked."""
    return Judgement((_container(inspection), _trust(inspection), _bytes(report, digest_ok), _values(report), _fit(fit)))


def _container(inspection: Inspection) -> Aspect:
    bad = _first(inspection.reasons, ("broken", "hostile"))
    if bad is not None and bad.code != "dangerous-global":
        return Aspect("container", "bad", bad.code, bad.message, inspection.seconds)
    unsure = _first(inspection.reasons, ("unsupported",))
    if unsure is not None:
        return Aspect("container", "unknown", unsure.code, unsure.message, inspection.seconds)
    inferred = next((reason for reason in inspection.reasons if reason.code == "headers-inferred"), None)
    if inferred is not None:
        return Aspect("container", "unknown", inferred.code, inferred.message, inspection.seconds)
    return Aspect("container", "ok", seconds=inspection.seconds)


def _trust(inspection: Inspection) -> Aspect:
    bad = _first(inspection.reasons, ("hostile", "untrusted"))
    if bad is not None:
        return Aspect("trust", "bad", bad.code, bad.message)
    if inspection.verdict in ("broken", "unsupported"):
        return Aspect("trust", "unknown", inspection.codes[0], "it could not be read to the end")
    return Aspect("trust", "ok")


def _bytes(report: LoadReport | None, digest_ok: bool | None) -> Aspect:
    if digest_ok is not None:
        return Aspect("bytes", "ok" if digest_ok else "bad", "" if digest_ok else "digest-mismatch")
    crc = _coded(report, ("crc-mismatch", "bytes-differ", "cut-off"))
    if crc is not None:
        return Aspect("bytes", "bad", crc.code, crc.message)
    if report is not None and report.verdict == "ok" and report.crc_checked_bytes:
        return Aspect("bytes", "ok", "crc32", "every storage has the zip's checksum")
    return Aspect("bytes", "unknown", "no-digest", "no recorded digest was compared")


def _values(report: LoadReport | None) -> Aspect:
    if report is None:
        return Aspect("values", "unknown", "not-loaded", "it was not loaded")
    if report.verdict == "ok" and report.finite:
        return Aspect("values", "ok", seconds=report.seconds)
    first = report.reasons[0] if report.reasons else None
    state: State = "bad" if report.verdict == "broken" else "unknown"
    return Aspect("values", state, first.code if first else report.verdict, first.message if first else "", report.seconds)


def _fit(fit: Fit | None) -> Aspect:
    if fit is None:
        return Aspect("fit", "unknown", "no-signature", "no signature is recorded to compare with")
    return Aspect("fit", {"fits": "ok", "does-not-fit": "bad", "unknown": "unknown"}[fit.verdict], fit.verdict, fit.sentence)  # type: ignore[arg-type]


def _first(reasons: Iterable[Reason], verdicts: tuple[str, ...]) -> Reason | None:
    return next((reason for reason in reasons if reason.verdict in verdicts), None)


def _coded(report: LoadReport | None, codes: tuple[str, ...]) -> Reason | None:
    return next((reason for reason in report.reasons if reason.code in codes), None) if report is not None else None
