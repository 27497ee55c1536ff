"""Revisions that are no longer current: snapshots of drives beyond what is to be kept, and what store and hub cache hold of older ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.copies.base import Copy, Look
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.errors import BadRecord, SteelyardError
from steelyard.leaving import Leaving
from steelyard.leftovers import folders_in
from steelyard.manifest import Manifest
from steelyard.published import is_commit
from steelyard.records import record_names
from steelyard.retain import Keep, RetentionPlan, Snapshot, plan_retention
from steelyard.site import Site
from steelyard.switch import held_folder, held_revisions

if TYPE_CHECKING:
    from steelyard.copies.s3 import S3Replica

log = logging.getLogger("steelyard")

GOING = "going"
"""Snapshots on their way out: renamed to here first, so that none is ever half there under its name."""


def superseded_snapshots(site: Site, copy: MountReplica) -> Iterator[Leaving]:
    """Snapshots of a drive beyond its keep_* settings; one with files that nothing records is left alone."""
    for model in site.config.models:
        for manifest in beyond_keep(site, copy, model, copy.commits(model), partial(_sealed_at, copy)):
            folder = copy.folder_of(model, manifest.commit)
            yield Leaving(copy.root, folder, "superseded: beyond what is to be kept", copy.name, model, manifest.commit)
    for path in folders_in(copy.ours, GOING):
        yield Leaving(copy.root, path, "a removal that was stopped half-way", copy.name)


def beyond_keep(
    site: Site, copy: MountReplica | S3Replica, model: str, commits: Iterable[str], sealed_at: Callable[[Manifest], datetime]
) -> Iterator[Manifest]:
    """Manifests of those of *commits* that the copy's keep_* settings let go; one that holds what nothing records is left alone."""
    plan, manifests = _retention(site, copy, model, commits, sealed_at)
    for one in plan.go:
        if strays := copy.strays(manifests[one.commit]):
            log.warning("%s: %s at %s holds %s, which nothing records; it is left alone", copy.name, model, one.commit[:8], strays[0])
            continue
        yield manifests[one.commit]


def _retention(
    site: Site, copy: MountReplica | S3Replica, model: str, commits: Iterable[str], sealed_at: Callable[[Manifest], datetime]
) -> tuple[RetentionPlan, dict[str, Manifest]]:
    """What stays and what goes of *commits* on a replica, and the manifests that were read for it."""
    settings, locked = copy.settings, site.locked_model(model)
    keep = Keep(settings.keep_last, settings.keep_daily, settings.keep_weekly, settings.keep_monthly)
    snapshots, manifests = [], dict[str, Manifest]()
    for commit in commits:
        try:
            manifest = copy.manifest(model, commit)
        except BadRecord as error:
            log.warning("%s: %s; it is left alone", copy.name, error.message)
            continue
        if manifest is not None:
            manifests[commit] = manifest
            snapshots.append(Snapshot(commit, sealed_at(manifest), verified(site, copy, manifest)))
    return plan_retention(snapshots, keep, current=locked.commit if locked else ""), manifests


def _sealed_at(copy: MountReplica, manifest: Manifest) -> datetime:
    folder = copy.folder_of(manifest.model, manifest.commit)
    seen = max((folder / name).stat().st_mtime for name in record_names(manifest).values() if (folder / name).is_file())
    return datetime.fromtimestamp(seen, UTC)


def verified(site: Site, copy: Copy, manifest: Manifest) -> bool | None:
    """What the last look at each file said, as far as the file still looks as it did then: one bad file makes it False, an unknown one None."""
    proofs = site.history.latest_of(copy.name, manifest.model, manifest.commit)
    verdicts = set()
    for entry in manifest.files:
        last = proofs[entry.path].finding if entry.path in proofs else None
        verdicts.add(copy.judge(manifest, entry, Look("quick"), last).verdict)
    return True if verdicts <= {"ok"} else None if verdicts <= {"ok", "unverified"} else False


# --- older revisions in the store and in the hub cache


def superseded_revisions(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    """What store or hub cache hold of revisions beyond [clean] keep_revisions, as long as a replica is proven to hold all of it."""
    if copy is not site.store and copy is not site.hub_cache:
        return
    for model, locked in site.lock().models.items():
        if model not in site.config.models:
            continue
        keep = site.config.clean.keep_revisions
        held = [one.commit for one in held_revisions(site, model)]
        known = [commit for commit in site.store.commits(model) if commit != locked.commit]
        stay = {locked.commit, *held[:keep], *known[-keep:]}
        for commit in held if copy is site.store else known:
            if commit in stay:
                continue
            where = _whole_elsewhere(site, model, commit)
            if not where:
                log.info("%s at %s is no longer current, but no replica is proven to hold it: it stays", model, commit[:8])
                continue
            reason = f"superseded: beyond keep_revisions, and whole in {where}"
            if copy is site.store:
                yield Leaving(copy.ours, held_folder(site, model, commit), reason, copy.name, model, commit)
            else:
                manifest = site.manifest(model, commit)
                yield from (Leaving(copy.root, path, reason, copy.name, model, commit) for path in _cached(site, manifest))


def _whole_elsewhere(site: Site, model: str, commit: str) -> str:
    """A replica that keeps that snapshot and on which every file of it was found whole at the last look; "" where none does."""
    try:
        own = site.store.manifest(model, commit)
    except BadRecord:
        own = None
    if own is None or not own.files:
        return ""
    for name, replica in site.replicas.items():
        try:
            if isinstance(replica, MountReplica):
                replica.ready(write=False)
                if commit in _retention(site, replica, model, replica.commits(model), partial(_sealed_at, replica))[0].stay and verified(
                    site, replica, own
                ):
                    return name
            elif all(
                one.path in (proofs := site.history.latest_of(name, model, commit)) and proofs[one.path].finding.ok for one in own.files
            ):
                return name
        except SteelyardError:
            continue
    return ""


def _cached(site: Site, manifest: Manifest) -> Iterator[Path]:
    """The snapshot folder of a revision in the hub cache, and the blobs that only it points to; nothing where it holds what we did not put there."""
    cache, repo = site.hub_cache, site.hub_cache.repo_folder(manifest.repo_id)
    folder = repo / "snapshots" / manifest.commit
    if not folder.is_dir() or folder.is_symlink() or manifest.commit in _refs(repo):
        return
    ours = {cache.link_of(manifest, entry.path) for entry in manifest.files}
    found = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    if not set(found) <= ours:
        return
    needed = {
        path.resolve()
        for other in folders_in(repo, "snapshots")
        if is_commit(other.name) and other != folder
        for path in other.rglob("*")
        if path.is_symlink()
    }
    yield folder
    for blob in sorted({cache.path_of(manifest, entry.path) for entry in manifest.files}):
        if blob.is_file() and not blob.is_symlink() and blob.resolve() not in needed:
            yield blob


def _refs(repo: Path) -> set[str]:
    """Commits that a branch or tag of the cache names: the library would call it damaged without their snapshots."""
    return {path.read_text(errors="replace").strip() for path in (repo / "refs").rglob("*") if path.is_file()}
