"""check-updates: what changed upstream and what it means for the user. Changes nothing that is held."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.errors import AccessDenied, Gone, Missing, OtherSide, SteelyardError, Unreachable
from steelyard.hub import Listing
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.notes import Told, write_note
from steelyard.plans import plan_from, write_plan
from steelyard.policy import against_taking
from steelyard.published import is_commit
from steelyard.report import Report, Row
from steelyard.scans import newly_flagged, scan_now, scan_of, sentence
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.upstream import Between, between, moved, wanted_upstream, words_changed
from steelyard.weather import Trouble
from steelyard.weights_change import weights_change

log = logging.getLogger("steelyard")

FAILED = {"unreachable", "access-denied", "gone"}
"""Outcomes of a Hub that did not tell what we asked."""
MAIN = "main"
"""The branch that a fixed commit is compared with."""


def check_updates(site: Site, models: Sequence[str] = (), *, run: Run = run_here) -> Report:
    """Ask the Hub about every one of *models* (none: all); one or two requests a repo, and some ranges of a changed checkpoint."""
    report = Report("check-updates")
    known: dict[tuple[str, str], Listing] = {}
    for model in site.config.chosen(list(models)):
        with report.collecting():
            locked = site.locked_model(model)
            if locked is None:
                raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
            report.rows.append(run(check_model, site, model, locked, known))
    return report.close()


def check_model(site: Site, model: str, locked: LockedModel, known: dict[tuple[str, str], Listing] | None = None) -> Row:
    """Step: one model's outcome. What the other side fails at is an outcome too, with exit code 4.

    *known* is what the Hub said of a repo in this round: two models of one repo ask once.
    """
    facts: dict[str, Any] = {
        "held_commit": locked.commit,
        "upstream_commit": None,
        "changed_files": [],
        "compatible": None,
        "tensors": None,
        "policy": site.config.models[model].update,
    }
    known = {} if known is None else known
    try:
        listing = _listing(site, locked.repo_id, locked.revision, known)
        _check_access(site, listing, [file.path for file in locked.files])
    except OtherSide as error:
        return _not_told(site, model, locked, facts, error, known)
    facts["upstream_commit"] = listing.commit
    facts["renamed_to"] = listing.repo_id if listing.repo_id != locked.repo_id else None
    upstream = wanted_upstream(listing, site.config.models[model].files, locked)
    held = {file.path: file for file in locked.files}
    scan, held_scan = scan_of(listing, upstream), scan_now(site.hub, locked, listing)
    flagged = newly_flagged(locked, held_scan, scan)
    facts |= {"scan": scan.word, "scan_held": held_scan.word, "scan_was": locked.scan, "flagged": flagged}
    changed = sorted(path for path in held.keys() | upstream.keys() if _etag(held.get(path)) != _etag(upstream.get(path)))
    facts["changed_files"] = changed
    facts["removed_files"] = [path for path in changed if path not in upstream]
    facts["cost_bytes"] = sum(upstream[path].size_bytes for path in changed if path in upstream)
    verdict, why, since = "unchanged", "", Between()
    if listing.commit != locked.commit:
        since = between(site, locked, listing.commit)
        facts["rewritten"] = since.rewritten
        facts["commits"] = [one.as_json() for one in since.commits]
        why = _words(changed, facts["removed_files"]) if changed else f"{listing.commit[:8]} is new, but does not touch our files"
        verdict = "history-rewritten" if since.rewritten else "update-available" if changed else "unchanged"
        why = f"{since.why}; {why}" if since.why else why
    elif is_commit(locked.revision):
        why = _beyond(site, locked, held, known)
    if flagged:
        verdict, why = "scan-flagged", f"{sentence(flagged)} now; {why or 'our files are unchanged'}"
    if facts["renamed_to"]:
        why = f"the repo is called {facts['renamed_to']} now, put that into the config{f'; {why}' if why else ''}"
    facts |= {"verdict": verdict, "why": why}
    if changed:
        facts |= _meaning(site, model, locked, listing, upstream, facts, since)
    site.history.event("check-updates", model, "hub", verdict, upstream=listing.commit)
    log.info("%s: %s%s", model, verdict, f" ({facts['why']})" if facts["why"] else "")
    return Row(model, copy="hub", facts=facts, exit_code=1 if verdict in {"scan-flagged", "history-rewritten"} else 0)


def _meaning(
    site: Site, model: str, locked: LockedModel, listing: Listing, upstream: Mapping[str, LockedFile], facts: dict[str, Any], since: Between
) -> dict[str, Any]:
    """What the change means, what it costs and how to take it: the tensors, the note, the plan."""
    changed = facts["changed_files"]
    change = weights_change(site, model, locked, listing.commit, changed, upstream)
    found: dict[str, Any] = {
        "compatible": change.compatible,
        "tensors": change.tensors,
        "sentences": change.sentences,
        "bad_files": change.bad,
        "memory": {"before": change.before, "after": change.after},
        "fetch_bytes": change.fetch_bytes,
        "fetch_bytes_exact": change.exact,
        "renamed_files": moved(locked, listing, facts["removed_files"]),
    }
    try:
        plan = plan_from(site, model, locked, listing)
    except SteelyardError as error:
        log.info("%s: there is no plan to take it: %s", model, error)  # a file that the config names is gone upstream
    else:
        found |= {"plan": plan.digest, "plan_path": str(write_plan(site, plan))}
    against = against_taking(site, model, locked, {**facts, **found})
    if facts["policy"] == "auto":
        found["not_taken"] = against
        found["why"] = f"{facts['why']}; not taken by itself: {against}" if against else facts["why"]
    told = Told(since.commits, words_changed(site, locked, listing), dict(upstream), rate_of(site, model))
    found["note"] = str(write_note(site, model, locked, {**facts, **found}, told))
    return found


def _listing(site: Site, repo_id: str, revision: str, known: dict[tuple[str, str], Listing]) -> Listing:
    key = (repo_id, revision)
    if key not in known:
        known[key] = site.hub.listing(repo_id, revision)
    return known[key]


def _not_told(
    site: Site, model: str, locked: LockedModel, facts: dict[str, Any], error: OtherSide, known: dict[tuple[str, str], Listing]
) -> Row:
    """The outcome where the Hub does not tell: for how long already, and what stays true of what is held."""
    verdict, why = "unreachable", error.message
    if isinstance(error, AccessDenied):
        verdict = "access-denied"
    elif isinstance(error, Gone):
        verdict = "gone"
        if error.facts.get("what") == "revision" and (now := _repo_is_there(site, locked, known)):
            facts["upstream_commit"] = now.commit
            if is_commit(locked.revision):
                verdict, why = (
                    "history-rewritten",
                    f"{locked.commit[:8]}, which is held, is no longer on the Hub; {MAIN} is {now.commit[:8]}",
                )
            else:
                why = f"the repo is there, but has no {locked.revision} any more; {MAIN} is {now.commit[:8]}"
    site.history.event("check-updates", model, "hub", verdict)
    since, last_answer = _since(site, model, verdict)
    if isinstance(error, Unreachable) and since:
        why = f"{why}; so since {since[:16]}{f', the last answer came {last_answer[:16]}' if last_answer else ''}"
    log.warning("%s: %s", model, why)
    facts |= {"verdict": verdict, "why": why, "hint": error.hint, "since": since, "last_answer": last_answer}
    return Row(model, copy="hub", facts=facts, exit_code=1 if verdict == "history-rewritten" else 4)


def _repo_is_there(site: Site, locked: LockedModel, known: dict[tuple[str, str], Listing]) -> Listing | None:
    try:
        return _listing(site, locked.repo_id, MAIN, known)
    except SteelyardError:
        return None


def _beyond(site: Site, locked: LockedModel, held: Mapping[str, LockedFile], known: dict[tuple[str, str], Listing]) -> str:
    """A fixed commit is only watched; that there is something newer is told, and is no update."""
    now = _repo_is_there(site, locked, known)
    if now is None or now.commit == locked.commit:
        return ""
    there = {file.path: file.etag for file in now.files}
    differ = [path for path, file in held.items() if there.get(path) != file.etag]
    return f"fixed at {locked.commit[:8]}; {MAIN} is {now.commit[:8]} and {f'changes {_some(differ)}' if differ else 'has the same files'}"


def _check_access(site: Site, listing: Listing, paths: Sequence[str]) -> None:
    """A gated repo still shows its metadata: only asking for a file tells that access is lost. :raises AccessDenied:"""
    file = next((file for file in listing.files if file.path in paths), None)
    if file is None:
        return
    line = Line(site.hub.endpoint, listing.repo_id, listing.commit, timeout_s=site.config.hub.timeout, connections=1)
    try:
        line.address(file)
    except (Trouble, Gone) as trouble:
        log.debug("%s: %s", file.path, trouble)  # weather says nothing about access
    finally:
        line.close()


def _words(changed: Sequence[str], removed: Sequence[str]) -> str:
    told = f"{len(changed)} of our files changed: {_some(changed)}"
    return f"{told}; removed upstream: {_some(removed)}" if removed else told


def _some(paths: Sequence[str]) -> str:
    return f"{', '.join(paths[:3])}{' …' if len(paths) > 3 else ''}"


def _etag(file: LockedFile | None) -> str:
    return file.etag if file else ""


def _since(site: Site, model: str, verdict: str) -> tuple[str | None, str | None]:
    """When this outcome began, and when the Hub last told what we asked; both ISO 8601, None where no record goes back so far."""
    since = last_answer = None
    same = True
    for at, _, outcome, _ in site.history.events("check-updates", model, 1000):
        same = same and outcome == verdict
        since = at if same else since
        if outcome not in FAILED:
            last_answer = at
            break
    return since, last_answer


def rate_of(site: Site, model: str) -> float | None:
    """Bytes per second of the last transfer of some size, of any model; None where none was measured."""
    for name in [model, *site.config.models]:
        for verb in ("update", "download"):
            for _, _, _, facts in site.history.events(verb, name, 5):
                count, seconds = facts.get("bytes"), facts.get("seconds")
                if isinstance(count, int) and isinstance(seconds, int | float) and count > 10_000_000 and seconds > 0:
                    return count / seconds
    return None
