"""The status as Markdown, for the Prefect UI: the same facts as in the terminal and on the page."""

from __future__ import annotations

from typing import Any

from steelyard.markdown import escaped
from steelyard.page.words import GLYPHS, STATE_WORDS, VERDICT_STATES, ago, day
from steelyard.report import Report
from steelyard.status import disk_line

MOST_MODELS = 500


def status_markdown(report: Report) -> str:
    """What could be restored now and what is held where, a row a model; what is not well comes first."""
    models: list[dict[str, Any]] = sorted(report.extra.get("models", ()), key=lambda one: one["restorable"]["state"] == "green")
    lines = ["# What is held where", "", escaped(disk_line(report)), ""]
    if models:
        green = sum(one["restorable"]["state"] == "green" for one in models)
        lines += [f"**{green} of {len(models)} could be restored now.**", ""]
        names = list(dict.fromkeys(copy for model in models for copy in model["copies"]))
        headings = ["model", "restorable now", "proof", "drill", *map(escaped, names), "whole copies", "update", "licence"]
        lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(_cells(model, names)) + " |" for model in models[:MOST_MODELS]]
        if len(models) > MOST_MODELS:
            lines += ["", f"… and {len(models) - MOST_MODELS} more"]
    lines += ["", *(f"- **{error.code}**: {escaped(error.message)}" for error in report.errors)]
    return "\n".join(lines)


def _cells(model: dict[str, Any], names: list[str]) -> list[str]:
    told = model["restorable"]
    why = f" ({escaped(told['why'])})" if told["why"] else ""
    took = f", {told['drill_seconds']:.0f} s" if told["drill_seconds"] is not None else ""
    update = model["update"]
    return [
        f"**{escaped(model['model'])}** {(model['commit'] or '')[:8]}".strip(),
        f"{GLYPHS[told['state']]} {STATE_WORDS[told['state']]}{why}",
        f"{ago(told['proof_age_s'])}",
        f"{ago(told['drill_age_s'])}{took}",
        *(_copy(model["copies"].get(name)) for name in names),
        f"{model['verified_copies']} of {model['min_copies']}",
        escaped(f"{update['verdict']}, {day(update['at'])}") if update else "never asked",
        escaped(model["licence"] or "unknown"),
    ]


def _copy(seen: dict[str, Any] | None) -> str:
    if seen is None:
        return ""
    if seen.get("away"):
        return "? away"
    whole = f", {day(seen['last_proven'])}" if seen.get("last_proven") else ""
    return f"{GLYPHS[VERDICT_STATES.get(seen['verdict'], 'unknown')]} {seen['verdict']}{whole}"
