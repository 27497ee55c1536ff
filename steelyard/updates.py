"""check-updates: what changed upstream and what it means for the user. Changes nothing that is held."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from steelyard.checkpoint import Inspection, inspect
from steelyard.copies.hub import HubFile
from steelyard.errors import AccessDenied, Gone, Missing, SteelyardError, Unreachable
from steelyard.hub import Listing
from steelyard.line import Line
from steelyard.loading import WEIGHTS
from steelyard.lock import LockedFile, LockedModel
from steelyard.notes import Commit, write_note
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.weather import Trouble

log = logging.getLogger("steelyard")


def check_updates(site: Site, models: Sequence[str] = (), *, run: Run = run_here) -> Report:
    """Ask the Hub about every one of *models* (none: all); one or two requests a repo, and some ranges of a changed checkpoint."""
    report = Report("check-updates")
    for model in site.config.chosen(list(models)):
        with report.collecting():
            locked = site.locked_model(model)
            if locked is None:
                raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
            report.rows.append(run(check_model, site, model, locked))
    return report.close()


def check_model(site: Site, model: str, locked: LockedModel) -> Row:
    """Step: one model's outcome. What the other side fails at is an outcome too, with exit code 4."""
    facts: dict[str, Any] = {
        "held_commit": locked.commit,
        "upstream_commit": None,
        "changed_files": [],
        "compatible": None,
        "tensors": None,
    }
    try:
        listing = site.hub.listing(locked.repo_id, locked.revision)
        _check_access(site, listing, [file.path for file in locked.files])
    except SteelyardError as error:
        if error.exit_code != 4:
            raise
        verdict = "access-denied" if isinstance(error, AccessDenied) else "gone" if isinstance(error, Gone) else "unreachable"
        site.history.event("check-updates", model, "hub", verdict)
        since = _unreachable_since(site, model) if isinstance(error, Unreachable) else None
        log.warning("%s: %s", model, error)
        return Row(
            model, copy="hub", facts={**facts, "verdict": verdict, "why": error.message, "hint": error.hint, "since": since}, exit_code=4
        )
    facts["upstream_commit"] = listing.commit
    facts["renamed_to"] = listing.repo_id if listing.repo_id != locked.repo_id else None
    wanted = site.config.models[model].files
    upstream = {file.path: file for file in listing.files if _wanted(file.path, wanted, locked)}
    held = {file.path: file for file in locked.files}
    changed = sorted(path for path in held.keys() | upstream.keys() if _etag(held.get(path)) != _etag(upstream.get(path)))
    facts["changed_files"] = changed
    facts["removed_files"] = [path for path in changed if path not in upstream]
    facts["scan"] = listing.scan
    facts["cost_bytes"] = sum(upstream[path].size_bytes for path in changed if path in upstream)
    verdict, commits = "unchanged", list[Commit]()
    if listing.commit != locked.commit:
        between = _commits_since(site, locked, listing.commit)
        commits = between or []
        facts["commits"] = [{"commit": one, "title": title, "authors": authors, "date": date} for one, title, authors, date in commits]
        if changed:
            verdict = "update-available"
            facts |= _compare(site, locked, listing, changed, held, upstream)
            facts["why"] = _words(changed, facts["removed_files"])
        else:
            facts["why"] = f"{listing.commit[:8]} is new, but does not touch our files"
        if between is None:
            verdict = "history-rewritten"
            facts["why"] = f"{locked.commit[:8]}, which is held, is no longer in the history of {locked.revision}; {facts['why']}"
    if listing.scan == "unsafe" and locked.scan != "unsafe":
        verdict = "scan-flagged"
        facts["why"] = f"the Hub's scan calls it unsafe now; {facts.get('why', 'our files are unchanged')}"
    if changed:
        facts["note"] = str(write_note(site, model, locked, facts, upstream, commits))
    site.history.event("check-updates", model, "hub", verdict, upstream=listing.commit)
    log.info("%s: %s", model, verdict)
    return Row(
        model, copy="hub", facts={**facts, "verdict": verdict}, exit_code=1 if verdict in {"scan-flagged", "history-rewritten"} else 0
    )


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
    told = f"{len(changed)} of our files changed: {', '.join(changed[:3])}{' …' if len(changed) > 3 else ''}"
    return f"{told}; removed upstream: {', '.join(removed[:3])}" if removed else told


def _commits_since(site: Site, locked: LockedModel, upstream: str) -> list[Commit] | None:
    """Commits after the held one, newest first; None when the held one is no longer in the history. Unknown (the Hub won't say) is an empty list."""
    found: list[Commit] = []
    try:
        for one in site.hub.ask(locked.repo_id, lambda: site.hub.api.list_repo_commits(locked.repo_id, revision=upstream)):
            if one.commit_id == locked.commit:
                return found
            found.append((one.commit_id, one.title, ", ".join(one.authors), one.created_at.isoformat()))
    except SteelyardError as error:
        log.warning("%s: the commits in between can't be listed: %s", locked.repo_id, error)
        return []
    return None


def _wanted(path: str, patterns: Sequence[str] | None, locked: LockedModel) -> bool:
    import fnmatch

    return patterns is None or locked.get(path) is not None or any(fnmatch.fnmatchcase(path, one) for one in patterns)


def _etag(file: LockedFile | None) -> str:
    return file.etag if file else ""


def _unreachable_since(site: Site, model: str) -> str | None:
    since = None
    for at, _, outcome, _ in site.history.events("check-updates", model, 500):
        if outcome != "unreachable":
            break
        since = at
    return since


def _compare(
    site: Site, locked: LockedModel, listing: Listing, changed: Sequence[str], held: dict[str, LockedFile], upstream: dict[str, LockedFile]
) -> dict[str, Any]:
    """The tensor difference of changed checkpoints, from their headers by Range. compatible is None where it can't be told."""
    from steelyard.checkpoint.diff import compare

    compatible: bool | None = None
    totals: dict[str, Any] = {}
    for path in changed:
        if path not in held or path not in upstream or not path.lower().endswith(WEIGHTS):
            continue
        try:
            with ExitStack() as stack:
                old = _held_inspection(site, locked, held[path], stack)
                new = _remote_inspection(site, locked.repo_id, listing.commit, upstream[path], stack)
                difference = compare(old, new)
        except (SteelyardError, ValueError) as error:
            log.warning("%s: the tensors can't be compared: %s", path, error)
            return {"compatible": None, "tensors": totals or None}
        totals = difference.as_json()
        fits = not (difference.added or difference.removed or difference.reshaped)
        compatible = fits if compatible is None else compatible and fits
    if any(path not in upstream for path in changed):
        compatible = False
    return {"compatible": compatible, "tensors": totals or None}


def _held_inspection(site: Site, locked: LockedModel, file: LockedFile, stack: ExitStack) -> Inspection:
    """From our own proven file; from the Hub at the locked commit where the store does not have it."""
    for model, one in site.lock().models.items():
        if one == locked:
            manifest = site.manifest(model, locked.commit)
            entry = manifest.get(file.path)
            if entry is not None:
                try:
                    source = site.store.open(manifest, entry)
                except SteelyardError:
                    break
                stack.callback(source.close)
                return inspect(source)
    return _remote_inspection(site, locked.repo_id, locked.commit, file, stack)


def _remote_inspection(site: Site, repo_id: str, commit: str, file: LockedFile, stack: ExitStack) -> Inspection:
    settings = site.config.hub
    line = Line(site.hub.endpoint, repo_id, commit, timeout_s=settings.timeout, connections=1)
    stack.callback(line.close)
    return inspect(HubFile(lambda: [line], file, patience_s=settings.patience))
