"""update and rollback: take the new version beside the old one, prove it, load it, switch; and go back without the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.checkpoint import LoadReport, load_check
from steelyard.copies.base import Look
from steelyard.disk import errors_of, gb, make_folder, publish, write_atomically
from steelyard.errors import Missing, NotLoadable
from steelyard.fetch import SMALL_BYTES, fetch, fetch_small
from steelyard.loading import weights_files
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import confine
from steelyard.pieces import digest_source
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.space import Need, check_room
from steelyard.staging import partial_paths
from steelyard.steps import Run, run_here
from steelyard.switch import back_to, held_revisions, recover, switch
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class UpdatePlan:
    """What an update would do: *changed* files are fetched, *kept* ones stay as they are, *gone* ones are no longer upstream."""

    model: str
    old: LockedModel
    new: LockedModel

    @property
    def changed(self) -> tuple[LockedFile, ...]:
        return tuple(file for file in self.new.files if (held := self.old.get(file.path)) is None or held.etag != file.etag)

    @property
    def gone(self) -> tuple[LockedFile, ...]:
        return tuple(file for file in self.old.files if self.new.get(file.path) is None)

    @property
    def cost_bytes(self) -> int:
        return sum(file.size_bytes for file in self.changed)


def update(site: Site, model: str, *, to: str | None = None, run: Run = run_here) -> Report:
    """Take *model* to what *to* (None: the config's revision) is now. Fails at any step with the old version current and whole."""
    report = Report("update")
    site.config.chosen([model])
    with report.collecting():
        site.store.ready(write=True)
        with site.writing("store", [model], "update"):
            recover(site, model)
            plan = run(plan_update, site, model, to)
            _apply(site, plan, report, run)
    return report.close()


def _apply(site: Site, plan: UpdatePlan, report: Report, run: Run) -> None:
    model, old, new = plan.model, plan.old, plan.new
    if old.commit == new.commit:
        report.rows.append(_row(site, plan, "unchanged", 0, why=f"{new.revision} is {new.commit[:8]}, as held"))
        if old.revision != new.revision:
            site.agree(model, new)
        return
    held = next((one for one in held_revisions(site, model) if one.commit == new.commit and not plan.gone), None)
    if held is not None:
        log.info("%s: %s is still held, nothing is fetched", model, new.commit[:8])
        run(switch_back, site, model, held, old)
        report.rows.append(_row(site, plan, "updated", 0, why="it was still held here"))
        return
    log.info("%s: %s → %s, %d files changed, %s to fetch", model, old.commit[:8], new.commit[:8], len(plan.changed), gb(plan.cost_bytes))
    incoming = make_folder(site.store.ours / "incoming" / model / new.commit)
    check_room([Need(site.store.root, plan.cost_bytes, site.config.store.min_free)])
    fetched, entries = 0, list[FileEntry]()
    for file in plan.changed:
        entry, count = run(fetch_incoming, site, model, new, file, incoming)
        fetched += count
        entries.append(entry)
    manifest = _new_manifest(site, plan, entries)
    changed = {entry.path for entry in entries}
    for entry in weights_files(manifest):
        if entry.path in changed:
            loaded = run(load_incoming, site, model, confine(incoming, entry.path))
            if loaded.verdict not in {"ok", "unsupported"}:
                why = f"{loaded.verdict}; {model} stays at {old.commit[:8]}"
                raise NotLoadable(
                    path=f"{entry.path} at {new.commit[:8]}",
                    why=why,
                    reason=loaded.verdict,
                    hint=f"steelyard inspect {incoming / entry.path}",
                )
    run(switch_to, site, plan, manifest, incoming)
    site.history.event("update", model, "store", "ok", commit=new.commit, was=old.commit, bytes=fetched)
    report.rows.append(_row(site, plan, "updated", fetched, why=f"{old.commit[:8]} is kept: steelyard rollback {model}"))


def _row(site: Site, plan: UpdatePlan, action: str, fetched: int, *, why: str = "") -> Row:
    facts = {
        "action": action,
        "held_commit": plan.old.commit,
        "commit": plan.new.commit,
        "changed_files": [file.path for file in plan.changed],
        "removed_files": [file.path for file in plan.gone],
        "bytes_fetched": fetched,
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
            recover(site, model)
            current = site.locked_model(model)
            held = held_revisions(site, model)
            if current is None or not held:
                hint = f"an older one may be on a replica: steelyard restore {model} --revision COMMIT --into DIR"
                raise Missing(path=f"an earlier revision of {model}", hint=hint)
            run(switch_back, site, model, held[0], current)
            facts = {"action": "rolled-back", "held_commit": current.commit, "commit": held[0].commit, "bytes_fetched": 0}
            facts["why"] = f"{current.commit[:8]} is kept: steelyard rollback {model} again goes forward"
            site.history.event("rollback", model, "store", "ok", commit=held[0].commit, was=current.commit)
            report.rows.append(Row(model, "", "store", str(site.config.folder(model)), facts))
    return report.close()


# --- steps


def plan_update(site: Site, model: str, to: str | None) -> UpdatePlan:
    """Ask the Hub what *to* is now. :raises Missing: when nothing is held yet."""
    old = site.locked_model(model)
    if old is None:
        raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
    wanted = site.config.models[model]
    revision = to or wanted.revision
    held = next((one for one in held_revisions(site, model) if to and one.commit.startswith(to.lower()) and len(to) >= 6), None)
    if held is not None:
        return UpdatePlan(model, old, held)
    listing = site.hub.listing(wanted.repo_id, revision)
    new = LockedModel(wanted.repo_id, revision, listing.commit, tuple(listing.matching(wanted.files)), scan=listing.scan)
    return UpdatePlan(model, old, new)


def fetch_incoming(site: Site, model: str, new: LockedModel, file: LockedFile, incoming: Path) -> tuple[FileEntry, int]:
    """One changed file of the new revision, proven by the Hub's digest, into *incoming*; what a killed update brought is kept."""
    final = confine(incoming, file.path)
    already = _proven(final, file)
    if already is not None:
        return already, 0
    settings, ours = site.config.hub, site.store.ours
    lines = site.lines(new)
    try:
        if file.size_bytes <= SMALL_BYTES:
            content, digests, _ = fetch_small(lines, file, patience_s=settings.patience)
            write_atomically(final, content)
            return FileEntry.of(file.path, digests, file.etag), len(content)
        fetched = fetch(lines, file, ours / "staging", ours / "quarantine", connections=settings.connections, patience_s=settings.patience)
    finally:
        for line in lines:
            line.close()
    partial, journal = partial_paths(ours / "staging", file.path, file.etag)
    with errors_of(final):
        publish(partial, final)
        journal.unlink(missing_ok=True)
    return fetched.entry, fetched.bytes_fetched


def _proven(path: Path, file: LockedFile) -> FileEntry | None:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return None
    with LocalFile(path) as source:
        digests = digest_source(source, stop=current_watch().stop, git=not file.sha256)
    if (digests.sha256 if file.sha256 else digests.git_sha1) != file.etag:
        return None
    return FileEntry.of(file.path, digests, file.etag)


def load_incoming(site: Site, model: str, path: Path) -> LoadReport:
    """Does the new file load, before it is switched to."""
    allowed = frozenset(site.config.models[model].allow_globals)
    return load_check(path, "cpu", stop=current_watch().stop, allow_globals=allowed)


def switch_to(site: Site, plan: UpdatePlan, manifest: Manifest, incoming: Path) -> None:
    """Judge what stays, then switch. :raises Missing: when a file that both revisions share is not whole in the store."""
    changed = {file.path for file in plan.changed}
    for entry in manifest.files:
        if entry.path not in changed and not (finding := site.store.judge(manifest, entry, Look())).ok:
            why = f"{entry.path} is {finding.verdict} in the store"
            raise Missing(path=f"{plan.model}: {why}", hint=f"run: steelyard repair {plan.model}, then update again")
    switch(site, plan.model, plan.old, plan.new, manifest, incoming)


def switch_back(site: Site, model: str, held: LockedModel, current: LockedModel) -> None:
    """Make a held revision current."""
    back_to(site, model, held, current)
