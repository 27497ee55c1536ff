"""update and rollback: take the new version beside the old one, prove it, load it, switch; and go back without the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.checkpoint import Fit
from steelyard.copies.base import Look
from steelyard.disk import gb, make_folder
from steelyard.download import check_plan
from steelyard.errors import Missing, NotLoadable, SteelyardError, UsageError
from steelyard.incoming import arrived, compare_incoming, fetch_incoming, load_incoming
from steelyard.loading import weights_files
from steelyard.lock import LockedModel
from steelyard.lookahead import NOTHING, check_seen, look_ahead
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import confine
from steelyard.papers import keep_papers
from steelyard.plans import UpdatePlan, hold_to_plan, plan_from, read_digest, taken_already
from steelyard.report import Report, Row
from steelyard.restore import Folder
from steelyard.scans import gate
from steelyard.sharing import ready_cache
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.switch import back_to, held_revisions, switch

log = logging.getLogger("steelyard")


def update(
    site: Site, model: str, *, to: str | None = None, plan: str | None = None, only_drop_in: bool = False, run: Run = run_here
) -> Report:
    """Take *model* to what *to* (None: the config's revision) is now. Fails at any step with the old version current and whole.

    *plan* is the digest of a plan that was approved: what is not just that is refused. *only_drop_in*: nothing that a strict loader of the held
    version would not take.
    """
    report = Report("update")
    site.config.chosen([model])
    if to and plan is not None:
        raise UsageError(why="--to and --plan contradict each other", hint="a plan says already what is taken")
    approved = read_digest(plan) if plan is not None else ""
    with report.collecting():
        site.store.ready(write=True)
        with site.writing("store", [model], "update"):
            if approved and (commit := taken_already(site, model, approved)):
                facts = {
                    "action": "unchanged",
                    "held_commit": commit,
                    "commit": commit,
                    "bytes_fetched": 0,
                    "why": "that plan was taken already",
                }
                report.rows.append(Row(model, "", "store", str(site.config.folder(model)), facts))
                return report.close()
            made = run(plan_update, site, model, to)
            if approved:
                run(hold_to_plan, site, made, approved)
            _apply(site, made, report, run, only_drop_in)
    return report.close()


def _apply(site: Site, plan: UpdatePlan, report: Report, run: Run, only_drop_in: bool) -> None:
    model, old, new = plan.model, plan.old, plan.new
    if old.commit == new.commit:
        report.rows.append(_row(site, plan, "unchanged", why=f"{new.revision} is {new.commit[:8]}, as held"))
        if old.revision != new.revision:
            site.agree(model, new)
        return
    held = next((one for one in held_revisions(site, model) if one.commit == new.commit and not plan.gone), None)
    # Without its record nothing vouches for what is kept: then it is fetched like any other.
    if held is not None and site.manifest(model, held.commit).files:
        log.info("%s: %s is still held, nothing is fetched", model, new.commit[:8])
        _, left = run(switch_back, site, model, held, old)
        site.history.event("update", model, "store", "ok", commit=new.commit, was=old.commit, bytes=0)
        report.rows.append(_row(site, plan, "updated", why="it was still held here"))
        report.errors += [left] if left else []
        return
    log.info("%s: %s → %s, %d files changed, %s to fetch", model, old.commit[:8], new.commit[:8], len(plan.changed), gb(plan.cost_bytes))
    began = time.monotonic()
    incoming = make_folder(site.store.ours / "incoming" / model / new.commit)
    # Both views of the new version must fit beside those of the old one, before the first byte.
    run(check_plan, site, model, new, [file for file in plan.changed if not arrived(incoming, file)])
    known = {file.etag for file in old.files}
    ahead = run(look_ahead, site, model, new, [one for one in plan.changed if one.etag not in known and not arrived(incoming, one)])
    for file in plan.changed:
        check_seen(site, model, file, ahead.get(file.path, NOTHING).seen, fetched=False)
    got = [run(fetch_incoming, site, plan, file, incoming, ahead.get(file.path, NOTHING)) for file in plan.changed]
    manifest = _new_manifest(site, plan, [one.entry for one in got])
    fit = _try_out(site, plan, manifest, incoming, run, only_drop_in)
    left = run(switch_to, site, plan, manifest, incoming)
    run(keep_papers, site, model, new)
    fetched, reused = sum(one.bytes_fetched for one in got), sum(one.bytes_reused for one in got)
    seconds = round(time.monotonic() - began, 3)
    site.history.event("update", model, "store", "ok", commit=new.commit, was=old.commit, bytes=fetched, seconds=seconds)
    why = f"{old.commit[:8]} is kept: steelyard rollback {model}"
    report.rows.append(_row(site, plan, "updated", fetched, reused, fit, why))
    report.errors += [left] if left else []


def _try_out(site: Site, plan: UpdatePlan, manifest: Manifest, incoming: Path, run: Run, only_drop_in: bool) -> Fit | None:
    """Load what arrived, before it is current, and compare it with what is held; the first that does not fit, else the last comparison.

    :raises NotLoadable: the old version stays.
    """
    changed = {file.path for file in plan.changed}
    told: Fit | None = None

    def refuse(file: str, reason: str, why: str, path: Path) -> NotLoadable:
        site.history.event("update", plan.model, "store", "refused", commit=plan.new.commit, why=why)
        return _not_taken(plan, file, reason, why, path)

    for entry in weights_files(manifest):
        if entry.path not in changed:
            continue
        path = confine(incoming, entry.path)
        loaded = run(load_incoming, site, plan.model, path, entry.sha256)
        if loaded.verdict not in {"ok", "unsupported"}:
            raise refuse(entry.path, loaded.verdict, loaded.verdict, path)
        if plan.old.get(entry.path) is None:
            continue
        fit = run(compare_incoming, site, plan, entry.path, path)
        if told is None or told.compatible is not False:
            told = fit
    if only_drop_in and told is not None and told.compatible is not True:
        raise refuse("", "not drop-in", told.sentence, incoming)
    return told


def _not_taken(plan: UpdatePlan, file: str, reason: str, why: str, path: Path) -> NotLoadable:
    where = f"{file or plan.model} at {plan.new.commit[:8]}"
    hint = f"steelyard inspect {path}" if file else f"to take it all the same: steelyard update {plan.model}"
    return NotLoadable(path=where, why=f"{why}; {plan.model} stays at {plan.old.commit[:8]}", reason=reason, hint=hint)


def _row(site: Site, plan: UpdatePlan, action: str, fetched: int = 0, reused: int = 0, fit: Fit | None = None, why: str = "") -> Row:
    facts = {
        "action": action,
        "held_commit": plan.old.commit,
        "commit": plan.new.commit,
        "changed_files": [file.path for file in plan.changed],
        "removed_files": [file.path for file in plan.gone],
        "bytes_fetched": fetched,
        "bytes_reused": reused,
        "compatible": fit.compatible if fit else None,
        "why": why,
    }
    return Row(plan.model, "", "store", str(site.config.folder(plan.model)), facts)


def _new_manifest(site: Site, plan: UpdatePlan, entries: Sequence[FileEntry]) -> Manifest:
    """The new revision's manifest: fetched files as they were proven, the others from the old manifest."""
    before = site.manifest(plan.model, plan.old.commit)
    manifest = Manifest(plan.model, plan.new.repo_id, plan.new.revision, plan.new.commit, ())
    fresh = {entry.path: entry for entry in entries}
    for file in plan.new.files:
        entry = fresh.get(file.path) or before.get(file.path)
        if entry is None:
            raise Missing(path=f"{plan.model}: {file.path}", hint=f"the store is not complete; run: steelyard download {plan.model}")
        manifest = manifest.with_file(entry)
    return manifest


def rollback(site: Site, model: str, *, run: Run = run_here) -> Report:
    """Go back to the revision that was current before. No network; seconds; as long as it is held."""
    report = Report("rollback")
    site.config.chosen([model])
    with report.collecting():
        site.store.ready(write=True)
        with site.writing("store", [model], "rollback"):
            current = site.locked_model(model)
            held = held_revisions(site, model)
            if current is None or not held:
                hint = f"an older one may be on a replica: steelyard restore {model} --revision COMMIT --into DIR"
                raise Missing(path=f"an earlier revision of {model}", hint=hint)
            proof, left = run(switch_back, site, model, held[0], current)
            why = f"{current.commit[:8]} is kept: steelyard rollback {model} again goes forward"
            if proof and "every piece" not in proof:
                why += f"; {proof}: the next verify reads all of it"
            facts = {"action": "rolled-back", "held_commit": current.commit, "commit": held[0].commit, "bytes_fetched": 0}
            facts |= {"proof": proof, "why": why}
            site.history.event("rollback", model, "store", "ok", commit=held[0].commit, was=current.commit)
            report.rows.append(Row(model, "", "store", str(site.config.folder(model)), facts))
            report.errors += [left] if left else []
    return report.close()


# --- steps


def plan_update(site: Site, model: str, to: str | None) -> UpdatePlan:
    """Ask the Hub what *to* is now. :raises Missing: when nothing is held yet. :raises Untrusted: when the scan gate is shut."""
    old = site.locked_model(model)
    if old is None:
        raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
    wanted = site.config.models[model]
    revision = to or wanted.revision
    held = next((one for one in held_revisions(site, model) if to and one.commit.startswith(to.lower()) and len(to) >= 6), None)
    if held is not None:
        return UpdatePlan(model, old, held)
    plan = plan_from(site, model, old, site.hub.listing(wanted.repo_id, revision))
    gate(site, model, plan.new)
    return plan


def switch_to(site: Site, plan: UpdatePlan, manifest: Manifest, incoming: Path) -> SteelyardError | None:
    """Judge what stays, make the hub cache's view beside the old one, then switch; switch()'s answer.

    :raises Missing: when a file that both revisions share is not whole in the store. :raises NoSpace, ReadOnly: nothing is switched then.
    """
    changed = {file.path for file in plan.changed}
    kept = [entry for entry in manifest.files if entry.path not in changed]
    for entry in kept:
        finding = site.store.judge(manifest, entry, Look())
        site.history.record("store", plan.model, plan.old.commit, entry.path, finding)
        if not finding.ok:
            why = f"{entry.path} is {finding.verdict} in the store"
            raise Missing(path=f"{plan.model}: {why}", hint=f"run: steelyard repair {plan.model}, then update again")
    site.hub_cache.ready(write=True)
    ready_cache(site, manifest, kept, site.store)
    ready_cache(site, manifest, [entry for entry in manifest.files if entry.path in changed], Folder(incoming))
    return switch(site, plan.model, plan.old, plan.new, manifest, incoming)


def switch_back(site: Site, model: str, held: LockedModel, current: LockedModel) -> tuple[str, SteelyardError | None]:
    """Make a held revision current: what its proof rests on, and switch()'s answer."""
    return back_to(site, model, held, current)
