"""clean: what may go, and with apply=True its removal. Only what we recorded or know to be a leftover; never the last proven copy of anything."""

from __future__ import annotations

import logging
import os
import stat as stat_bits
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from steelyard.copies.base import Copy, Look
from steelyard.copies.folder import FolderCopy, below
from steelyard.copies.mount import MountReplica
from steelyard.disk import errors_of, fsync_folder, gb, make_folder
from steelyard.errors import BadRecord, Busy, Refused, SteelyardError
from steelyard.manifest import Manifest
from steelyard.names import OURS
from steelyard.records import record_names
from steelyard.report import Report, Row
from steelyard.retain import Keep, Snapshot, plan_retention
from steelyard.site import Site
from steelyard.staging import partial_paths

log = logging.getLogger("steelyard")

LEFTOVER_AGE_S = 86400.0
"""A partial that nothing wants, or one of huggingface_hub, is a leftover when nobody touched it for a day."""
GOING = "going"
"""Snapshots on their way out: renamed to here first, so that none is ever half there under its name."""


@dataclass(frozen=True)
class Leaving:
    """A file or folder below *root* that may go. *files*: for a snapshot just these, recorded ones; None: all of it, a folder of our own."""

    root: Path
    path: Path
    bytes: int
    reason: str
    copy: str
    model: str = ""
    commit: str = ""


def clean(site: Site, *, apply: bool = False) -> Report:
    """Rows of what would be removed, or with *apply* was. A copy that another run writes to, or that is away, is left alone and said so."""
    report = Report("clean")
    for name, copy in site.copies.items():
        if not isinstance(copy, FolderCopy):
            log.info("%s: what is superseded there is left to the bucket's own lifecycle rules", name)
            continue
        with report.collecting(), ExitStack() as locks:
            try:
                copy.ready(write=apply and isinstance(copy, MountReplica))
                if apply and copy.ours.is_dir():
                    locks.enter_context(site.writing(name, list(site.config.models), "clean"))
            except (Busy, Refused) as error:
                log.warning("%s is left alone: %s", name, error.message)
                continue
            except SteelyardError:
                continue  # no store yet
            for one in [*_superseded(site, copy), *_leftovers(site, copy), *_downloads(site, copy)]:
                with report.collecting():
                    report.rows.append(_carry_out(site, copy, one, apply))
    freed = sum(int(row.facts["bytes"]) for row in report.rows)
    if report.rows:
        report.extra["note"] = f"{gb(freed)} freed" if apply else f"{gb(freed)} would be freed; remove it with: steelyard clean --apply"
    return report.close()


def _carry_out(site: Site, copy: FolderCopy, one: Leaving, apply: bool) -> Row:
    if apply:
        with copy.held() as held:
            _remove(held, copy, one)
        log.info("removed %s (%s)", one.path, one.reason)
    facts = {"action": "removed" if apply else "would-remove", "bytes": one.bytes, "reason": one.reason}
    if one.commit:
        facts["commit"] = one.commit
        if apply:
            site.history.event("clean", one.model, copy.name, "removed", commit=one.commit, bytes=one.bytes)
    return Row(one.model, "", one.copy, str(one.path), facts)


# --- superseded snapshots of replicas


def _superseded(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    if not isinstance(copy, MountReplica):
        return
    settings = copy.settings
    keep = Keep(settings.keep_last, settings.keep_daily, settings.keep_weekly, settings.keep_monthly)
    for model in site.config.models:
        locked = site.locked_model(model)
        snapshots, manifests = [], dict[str, Manifest]()
        for commit in copy.commits(model):
            try:
                manifest = copy.manifest(model, commit)
            except BadRecord as error:
                log.warning("%s: %s; it is left alone", copy.name, error.message)
                continue
            if manifest is not None:
                manifests[commit] = manifest
                snapshots.append(Snapshot(commit, _sealed_at(copy, manifest), _verified(site, copy, manifest)))
        plan = plan_retention(snapshots, keep, current=locked.commit if locked else "")
        for one in plan.go:
            manifest = manifests[one.commit]
            if strays := copy.strays(manifest):
                log.warning("%s: %s at %s holds %s, which nothing records; it is left alone", copy.name, model, one.commit[:8], strays[0])
                continue
            folder = copy.folder_of(model, one.commit)
            yield Leaving(copy.root, folder, _freed(folder), "superseded: beyond what is to be kept", copy.name, model, one.commit)
    going = copy.ours / GOING
    for path in sorted(going.iterdir()) if going.is_dir() else ():
        yield Leaving(copy.root, path, _freed(path), "a removal that was stopped half-way", copy.name)


def _sealed_at(copy: MountReplica, manifest: Manifest) -> datetime:
    folder = copy.folder_of(manifest.model, manifest.commit)
    seen = max((folder / name).stat().st_mtime for name in record_names(manifest).values() if (folder / name).is_file())
    return datetime.fromtimestamp(seen, UTC)


def _verified(site: Site, copy: Copy, manifest: Manifest) -> bool | None:
    """What the last look at each file said, as far as the file still looks as it did then: one bad file makes it False, an unknown one None."""
    proofs = site.history.latest_of(copy.name, manifest.model, manifest.commit)
    verdicts = set()
    for entry in manifest.files:
        last = proofs[entry.path].finding if entry.path in proofs else None
        verdicts.add(copy.judge(manifest, entry, Look("quick"), last).verdict)
    return True if verdicts <= {"ok"} else None if verdicts <= {"ok", "unverified"} else False


# --- what runs that were killed left behind


def _leftovers(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    wanted = _wanted(site, copy.ours / "staging")
    for path in _old_files(copy.ours / "staging", LEFTOVER_AGE_S):
        ended = path.suffix == ".journal" and not path.with_suffix(".partial").exists()
        if (path not in wanted or ended) and path.suffix in {".partial", ".journal", ".new"}:
            yield Leaving(copy.ours, path, _freed(path), "an orphaned partial: nothing that is agreed on needs it", copy.name)
    for path in _folders(copy.ours / "drill"):
        if path.lstat().st_mtime < time.time() - LEFTOVER_AGE_S:
            yield Leaving(copy.ours, path, _freed(path), "the scratch folder of a drill that was killed", copy.name)
    for case in _folders(copy.ours / "quarantine"):
        record = case / "record.json"
        if record.is_file() and record.lstat().st_mtime < time.time() - site.config.store.keep_quarantine:
            yield Leaving(copy.ours, case, _freed(case), "in quarantine for longer than keep_quarantine", copy.name)


def _wanted(site: Site, staging: Path) -> set[Path]:
    """Partials that a run begun today would go on with."""
    wanted: set[Path] = set()
    for model, held in site.lock().models.items():
        if model not in site.config.models:
            continue
        manifest = site.manifest(model, held.commit)
        for file in held.files:
            entry = manifest.get(file.path)
            for identity in {file.etag, entry.sha256 if entry else file.etag}:
                wanted |= set(partial_paths(staging, file.path, identity))
    return wanted


def _downloads(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    """huggingface_hub never goes on with these: each try opens a fresh one."""
    if copy.name != "hub-cache":
        return
    for repo in _folders(copy.root):
        for path in _old_files(repo / "blobs", LEFTOVER_AGE_S) if repo.name.startswith(("models--", "datasets--", "spaces--")) else ():
            if path.name.endswith(".incomplete"):
                yield Leaving(copy.root, path, _freed(path), "an unfinished download of huggingface_hub", copy.name)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink() or folder.parent.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _old_files(folder: Path, age_s: float) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink() or folder.parent.is_symlink():
        return []
    seen = [(path, path.lstat()) for path in sorted(folder.iterdir())]
    return [path for path, stat in seen if stat_bits.S_ISREG(stat.st_mode) and max(stat.st_mtime, stat.st_ctime) < time.time() - age_s]


def _freed(path: Path) -> int:
    """Bytes that go with *path*: those of its files that have no other name elsewhere."""
    seen = path.lstat()
    if not stat_bits.S_ISDIR(seen.st_mode):
        return seen.st_size if seen.st_nlink == 1 else 0
    return sum(_freed(one) for one in path.iterdir())


# --- removal


def _remove(held: Path, copy: FolderCopy, one: Leaving) -> None:
    """Remove *one*; a snapshot is first renamed out of sight. Never through a link, never on another file system.

    :raises Refused: when either would happen; what was removed before stays removed.
    """
    path, top = (below(held, copy.root, it) if it.is_relative_to(copy.root) else it for it in (one.path, one.root))
    with errors_of(one.path):
        device = top.stat().st_dev
        if one.commit:
            model, going = path.parent, make_folder(held / OURS / GOING) / f"{one.model}-{one.commit}"
            path.rename(going)
            fsync_folder(model)
            path = going
        _remove_tree(path, device)
        fsync_folder(path.parent)
        if one.commit and not any(model.iterdir()):
            model.rmdir()


def _remove_tree(path: Path, device: int) -> None:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove_at(parent, path.name, device, path)
    finally:
        os.close(parent)


def _remove_at(parent: int, name: str, device: int, shown: Path) -> None:
    seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if seen.st_dev != device:
        raise Refused(why=f"{shown} lies on another file system and was left", hint="unmount what is mounted there")
    if not stat_bits.S_ISDIR(seen.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with os.scandir(fd) as entries:
            children = [entry.name for entry in entries]
        for child in children:
            _remove_at(fd, child, device, shown / child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
