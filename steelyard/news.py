"""What a report has to tell someone who was not looking: one piece of news an outcome, each with what makes it the same as before.

The same thing is told once: the same commit, the same damage of the same file. What has ended is forgotten, so that it is told when it comes again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from steelyard.disk import gb
from steelyard.protection import age_text
from steelyard.report import Report, Row, summary

UPDATE_AVAILABLE = "steelyard.update.available"
UPDATE_APPLIED = "steelyard.update.applied"
ROLLED_BACK = "steelyard.update.rolled-back"
HISTORY_REWRITTEN = "steelyard.upstream.history-rewritten"
SCAN_FLAGGED = "steelyard.upstream.scan-flagged"
RENAMED = "steelyard.upstream.renamed"
ACCESS_LOST = "steelyard.upstream.access-lost"
GONE = "steelyard.upstream.gone"
UNREACHABLE = "steelyard.upstream.unreachable"
STALE = "steelyard.upstream.stale"
VERIFY_FAILED = "steelyard.verify.failed"
LOAD_FAILED = "steelyard.load.failed"
DRILL_FAILED = "steelyard.drill.failed"
DRILL_SLOWER = "steelyard.drill.slower"
OVERDUE = "steelyard.replica.overdue"
RUN_FAILED = "steelyard.run.failed"
TOO_FEW = "steelyard.copies.too-few"
NEARLY_FULL = "steelyard.disk.nearly-full"
DISK_LOW = "steelyard.disk.low"
DISK_FAILING = "steelyard.disk.failing"

STALE_AFTER_S = 3 * 86400.0
"""So long a Hub may be away before that is something to act on."""
_NOT_TOLD = {"access-denied": ACCESS_LOST, "gone": GONE, "unreachable": UNREACHABLE}
_BAD = {"corrupt", "unreadable", "missing"}


@dataclass(frozen=True)
class News:
    """*event* about *subject*, told in one sentence. The same *key* is the same thing, and told once. An empty key: that has ended."""

    event: str
    subject: str
    key: str
    told: str = ""
    model: str = ""


def news_of(report: Report, scope: str = "") -> list[News]:
    """All of a report's news. *scope* is what the run was about: two runs of one verb over other models are not the same thing."""
    found: list[News] = []
    rest: list[str] = []
    for row in report.rows:
        of_row = list(_of_row(report, row))
        found += of_row
        if row.exit_code and not any(one.key for one in of_row):
            rest.append(f"{row.model}/{row.copy}/{row.file}: {row.outcome}")
    rest += [f"{error.code} {_about(error.facts)}" for error in report.errors]
    subject = f"{report.command} {scope}"
    found.append(News(RUN_FAILED, subject, _digest(sorted(rest)) if rest else "", _failure(report, scope)))
    return found


def news_of_state(report: Report) -> list[News]:
    """What status finds that is not as the config wants it."""
    store = report.extra["store"]
    full = store["free_bytes"] < store["min_free_bytes"]
    told = f"{store['models']}: {gb(store['free_bytes'])} free, {gb(store['min_free_bytes'])} are wanted"
    found = [News(NEARLY_FULL, f"store {store['models']}", "full" if full else "", told)]
    for model in report.extra["models"]:
        few = model["commit"] and model["verified_copies"] < model["min_copies"]
        told = f"{model['model']}: {model['verified_copies']} verified copies, {model['min_copies']} are wanted"
        found.append(News(TOO_FEW, model["model"], told if few else "", told, model["model"]))
        for copy, seen in model["copies"].items():
            found += _of_age(model["model"], copy, seen)
    return found


def _of_age(model: str, copy: str, seen: Mapping[str, Any]) -> Iterator[News]:
    """A replica that is past its max_age; where several drives take turns, each of them."""
    drives = seen.get("drives") or []
    for one in drives if len(drives) > 1 else [seen] if "overdue" in seen else []:
        who = f"{copy}, drive {one.get('label') or one.get('id')}" if one is not seen else copy
        at = one.get("last_good_at")
        told = f"{who}: its last good copy of {model} is {age_text(_age_s(at))} old" if at else f"{who} never had a good copy of {model}"
        yield News(
            OVERDUE, f"{model}/{copy}/{one.get('id', '') if one is not seen else ''}", "overdue" if one["overdue"] else "", told, model
        )


def _of_row(report: Report, row: Row) -> Iterator[News]:
    verb = str(row.facts.get("verb") or report.command)
    if verb == "check-updates":
        yield from _of_check(row)
    elif verb in {"verify", "scrub", "repair"}:
        yield from _of_look(row)
    elif verb == "disk-watch":
        yield from _of_disk(row)
    elif verb in {"load", "drill"}:
        event = LOAD_FAILED if verb == "load" else DRILL_FAILED
        key = row.outcome if row.exit_code else ""
        yield News(event, f"{row.model}/{row.copy}/{row.file}", key, f"{_where(row)} is {row.outcome}{_why(row)}", row.model)
        if "slower" in row.facts:
            slow = f"{_where(row)}: {row.facts.get('seconds')} s, usually {row.facts.get('usual_seconds')} s"
            yield News(DRILL_SLOWER, f"{row.model}/{row.copy}", "slower" if row.facts["slower"] else "", slow, row.model)
    elif row.facts.get("action") in {"updated", "rolled-back"}:
        event = UPDATE_APPLIED if row.facts["action"] == "updated" else ROLLED_BACK
        # Each is an act of its own, even where it leads to the same commit as one before.
        key = f"{row.facts.get('commit')} {datetime.now(UTC).isoformat()}"
        yield News(event, row.model, key, f"{row.model} is at {str(row.facts.get('commit'))[:8]} now{_why(row)}", row.model)


def _of_check(row: Row) -> Iterator[News]:
    model, facts, outcome = row.model, row.facts, row.outcome
    told = f"{model}: {facts.get('why') or outcome}"
    failed = _NOT_TOLD.get(outcome)
    since = facts.get("since")
    if failed:
        yield News(failed, model, outcome, told, model)
        if outcome == "unreachable" and isinstance(since, str) and _age_s(since) > STALE_AFTER_S:
            yield News(STALE, model, "stale", told, model)
        return
    for event in (*_NOT_TOLD.values(), STALE):
        yield News(event, model, "")
    upstream = str(facts.get("upstream_commit"))
    if outcome == "update-available":
        how = f"; to approve: {facts['plan']}" if facts.get("policy") == "approve" and facts.get("plan") else ""
        yield News(UPDATE_AVAILABLE, model, upstream, f"{told}{how}", model)
    if outcome == "history-rewritten":
        yield News(HISTORY_REWRITTEN, model, upstream, told, model)
    yield News(SCAN_FLAGGED, model, upstream if outcome == "scan-flagged" else "", told, model)
    if facts.get("renamed_to"):
        yield News(RENAMED, model, str(facts["renamed_to"]), told, model)


def _of_look(row: Row) -> Iterator[News]:
    subject = f"{row.model}/{row.copy}/{row.facts.get('commit', '')}/{row.file}"
    if row.outcome in _BAD and row.exit_code:
        key = _digest([row.outcome, row.facts.get("bad_ranges")])
        yield News(VERIFY_FAILED, subject, key, f"{_where(row)} is {row.outcome}{_why(row)}", row.model)
    elif row.outcome in {"ok", "repaired"}:
        yield News(VERIFY_FAILED, subject, "")


def _of_disk(row: Row) -> Iterator[News]:
    """The amounts are not part of what makes it the same: a disk that fills up is told at each level, not at each byte."""
    subject, told, failing = f"disk {row.path}", f"{row.path}: {row.facts.get('why', '')}", bool(row.facts.get("failing"))
    yield News(DISK_FAILING, subject, _digest([row.facts.get("io_errors"), row.facts.get("smart")]) if failing else "", told)
    yield News(NEARLY_FULL, subject, "error" if row.outcome == "error" and not failing else "", told)
    yield News(DISK_LOW, subject, "warning" if row.outcome == "warning" else "", told)


def _where(row: Row) -> str:
    return " in ".join(part for part in (row.file or row.model, row.copy) if part)


def _why(row: Row) -> str:
    return f" ({row.facts['why']})" if row.facts.get("why") else ""


def _failure(report: Report, scope: str) -> str:
    first = next((error.message for error in report.errors), "")
    return f"{summary(report)}{f' · {scope}' if scope else ''}{f': {first}' if first else ''}"


def _about(facts: dict[str, object]) -> str:
    """What an error is about, without what changes from day to day (sizes, process ids, times)."""
    return next((str(facts[key]) for key in ("model", "copy", "path", "place", "who", "what") if facts.get(key)), "")


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:32]


def _age_s(at: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
