"""Who takes an update: a person (notify), a person who approves its plan (approve), or the nightly round where nothing speaks against it (auto)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steelyard.lock import LockedModel
from steelyard.published import is_commit
from steelyard.site import Site


def against_taking(site: Site, model: str, locked: LockedModel, facts: Mapping[str, Any]) -> str:
    """Why *facts* (a check-updates row) is not for the nightly round to take; empty when nothing speaks against it."""
    if is_commit(locked.revision):
        return "a fixed commit is only watched"
    if facts.get("verdict") != "update-available":
        return f"it is {facts.get('verdict')}"
    if facts.get("bad_files"):
        return f"the new file is {next(iter(facts['bad_files'].values()))}: {next(iter(facts.get('sentences') or ()), '')}"
    if facts.get("compatible") is not True:
        told = "it is not drop-in" if facts.get("compatible") is False else "nobody can tell whether it is drop-in"
        return f"{told}: {first}" if (first := next(iter(facts.get("sentences") or ()), "")) else told
    if facts.get("removed_files"):
        return "a file that is held is gone upstream"
    if facts.get("scan") != "safe":
        return f"the Hub's scan says {facts.get('scan') or 'nothing'} of it, not safe"
    for at, _, outcome, tried in site.history.events("update", model, 50):
        if outcome == "refused" and tried.get("commit") == facts.get("upstream_commit"):
            return f"it was tried on {at[:10]}: {tried.get('why')}"
    if facts.get("upstream_commit") in gone_back_from(site, model):
        return "you went back from it: steelyard rollback is not undone behind your back"
    return ""


def gone_back_from(site: Site, model: str) -> set[str]:
    """Commits that a rollback left behind and that no update by a person took up again since."""
    left: set[str] = set()
    events = [(at, outcome, facts, "rollback") for at, _, outcome, facts in site.history.events("rollback", model, 50)]
    events += [(at, outcome, facts, "update") for at, _, outcome, facts in site.history.events("update", model, 50)]
    for _, outcome, facts, verb in sorted(events, key=lambda event: event[0]):
        if outcome != "ok":
            continue
        if verb == "rollback":
            left.add(str(facts.get("was")))
        left.discard(str(facts.get("commit")))
    return left
