"""One honest answer per file, aspect by aspect: container, bytes, values, fit, trust. The whole is never better than the worst that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steelyard.checkpoint.inspection import Inspection
from steelyard.checkpoint.load import LoadReport
from steelyard.checkpoint.reasons import Reason
from steelyard.checkpoint.signature import Fit

AspectName = Literal["container", "bytes", "values", "fit", "trust"]
State = Literal["ok", "bad", "unknown"]


@dataclass(frozen=True, slots=True)
class Aspect:
    """One question and its answer. *code* says what it rests on: a reason's code, a proof, or why it is unknown; *seconds* is what asking cost."""

    name: AspectName
    state: State
    code: str
    sentence: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {"verdict": self.state, "reason": self.code, "sentence": self.sentence, "seconds": round(self.seconds, 4)}


@dataclass(frozen=True, slots=True)
class ByteProof:
    """What is known of the bytes from outside the file: *code* names the proof (sha256, pieces, …) or what was wrong."""

    state: State
    code: str
    sentence: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    aspects: tuple[Aspect, ...]

    @property
    def whole(self) -> State:
        """bad if anything is; else unknown if anything is; ok only when every aspect was looked at."""
        states = {aspect.state for aspect in self.aspects}
        return "bad" if "bad" in states else "unknown" if "unknown" in states else "ok"

    def as_json(self) -> dict[str, Any]:
        return {"whole": self.whole, "aspects": {aspect.name: aspect.as_json() for aspect in self.aspects}}


def judge(inspection: Inspection, report: LoadReport | None = None, fit: Fit | None = None, proof: ByteProof | None = None) -> Judgement:
    """Put together what is known. *proof* is what a recorded digest says of the bytes; None when nobody looked."""
    return Judgement((_container(inspection), _bytes(report, proof), _values(report), _fit(fit), _trust(inspection)))


def told(judgement: Mapping[str, Any]) -> str:
    """A judgement's JSON in one line: "container ok · bytes unknown (no-digest) · … → unknown"."""
    parts = [f"{name} {one['verdict']} ({one['reason']}{_took(one['seconds'])})" for name, one in judgement["aspects"].items()]
    return f"{' · '.join(parts)} → {judgement['whole']}"


def _took(seconds: float) -> str:
    return f", {seconds:.2f} s" if seconds >= 0.005 else ""


def _container(inspection: Inspection) -> Aspect:
    took = inspection.seconds
    bad = _first(inspection.reasons, ("broken", "hostile"))
    if bad is not None and bad.code != "dangerous-global":
        return Aspect("container", "bad", bad.code, bad.message, took)
    unsure = _first(inspection.reasons, ("unsupported",))
    if unsure is not None:
        return Aspect("container", "unknown", unsure.code, unsure.message, took)
    inferred = next((reason for reason in inspection.reasons if reason.code == "headers-inferred"), None)
    if inferred is not None:
        return Aspect("container", "unknown", inferred.code, inferred.message, took)
    odd = _first(inspection.reasons, ("suspect",))
    if odd is not None:
        return Aspect("container", "ok", odd.code, odd.message, took)
    return Aspect("container", "ok", "whole", seconds=took)


def _trust(inspection: Inspection) -> Aspect:
    bad = _first(inspection.reasons, ("hostile", "untrusted"))
    if bad is not None:
        return Aspect("trust", "bad", bad.code, bad.message)
    if inspection.verdict in ("broken", "unsupported"):
        return Aspect("trust", "unknown", inspection.codes[0], "it could not be read to the end")
    allowed = next((reason for reason in inspection.reasons if reason.code == "allowed-global"), None)
    if allowed is not None:
        return Aspect("trust", "ok", allowed.code, allowed.message)
    return Aspect("trust", "ok", "allowlist" if inspection.format.startswith("torch") else "no-code")


def _bytes(report: LoadReport | None, proof: ByteProof | None) -> Aspect:
    wrong = _coded(report, ("crc-mismatch", "bytes-differ", "cut-off"))
    if wrong is not None:
        return Aspect("bytes", "bad", wrong.code, wrong.message, _phase(report, "scan"))
    if proof is not None and proof.state != "unknown":
        return Aspect("bytes", proof.state, proof.code, proof.sentence, proof.seconds)
    if report is not None and report.verdict == "ok" and report.crc_checked_bytes:
        return Aspect("bytes", "ok", "crc32", "the tensors' bytes have the container's own checksums", _phase(report, "scan"))
    if proof is not None:
        return Aspect("bytes", "unknown", proof.code, proof.sentence, proof.seconds)
    return Aspect("bytes", "unknown", "not-compared", "no recorded digest was compared")


def _values(report: LoadReport | None) -> Aspect:
    if report is None:
        return Aspect("values", "unknown", "not-loaded", "it was not loaded")
    first = report.reasons[0] if report.reasons else None
    if report.verdict == "ok" and report.finite:
        zero = next((reason for reason in report.reasons if reason.code == "zero-tensors"), None)
        return Aspect("values", "ok", zero.code if zero else "finite", zero.message if zero else "", report.seconds)
    if report.finite is False or report.verdict == "broken":
        blamed = _coded(report, ("values-not-finite", "load-failed", "tensors-differ", "child-died", "timeout"))
        if blamed is not None:
            return Aspect("values", "bad", blamed.code, blamed.message, report.seconds)
    return Aspect("values", "unknown", first.code if first else report.verdict, first.message if first else "", report.seconds)


def _fit(fit: Fit | None) -> Aspect:
    if fit is None:
        return Aspect("fit", "unknown", "no-signature", "no signature is recorded to compare with")
    state: dict[str, State] = {"fits": "ok", "does-not-fit": "bad", "unknown": "unknown"}
    return Aspect("fit", state[fit.verdict], "not-read" if fit.verdict == "unknown" else fit.verdict, fit.sentence)


def _phase(report: LoadReport | None, name: str) -> float:
    return dict(report.phases).get(name, 0.0) if report is not None else 0.0


def _first(reasons: Iterable[Reason], verdicts: tuple[str, ...]) -> Reason | None:
    return next((reason for reason in reasons if reason.verdict in verdicts), None)


def _coded(report: LoadReport | None, codes: tuple[str, ...]) -> Reason | None:
    return next((reason for reason in report.reasons if reason.code in codes), None) if report is not None else None
