"""What a check of doctor's found: one row, with the fix where it is not well."""

from __future__ import annotations

from typing import Literal

from steelyard.report import Row

Verdict = Literal["ok", "failed", "unknown"]


def row(check: str, verdict: Verdict, why: str = "", fix: str = "", *, exit_code: int = 1) -> Row:
    """*exit_code* counts where the verdict is "failed"."""
    facts = {"check": check, "verdict": verdict, "why": why, "fix": fix if verdict != "ok" else ""}
    return Row(facts=facts, exit_code=exit_code if verdict == "failed" else 0)
