"""backup: bring replicas up to date. Only proven bytes are carried, nothing is deleted, and what a replica holds is never overwritten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.batches import batches
from steelyard.copies.base import Copy, Finding, Look, ProvenReader, Rotten
from steelyard.copies.folder import FolderCopy
from steelyard.disk import device_of
from steelyard.errors import Corrupt, Missing, MountAbsent, Range, SourceRotten, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import MIB, merge_ranges
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.steps import Run, run_here

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class Carried:
    """What became of one file: *error* is set where it was refused."""

    path: str
    action: str
    bytes_written: int = 0
    error: SteelyardError | None = None


def backup(site: Site, models: Sequence[str] = (), *, to: str | None = None, run: Run = run_here) -> Report:
    """Bring *models* (none: all) to the replica *to* (None: every replica; an absent drive is then skipped, with the age of its last good copy)."""
    report = Report("backup")
    chosen = site.config.chosen(list(models))
    targets = [site.replica(to).name] if to else list(site.replicas)
    if not targets:
        log.warning("the config has no replicas: there is nowhere to back up to")
    proven: dict[tuple[str, str], Finding] = {}
    for name in targets:
        replica = site.replicas[name]
        with report.collecting():
            try:
                replica.ready(write=True)
            except MountAbsent as error:
                if to:
                    raise
                log.warning("%s is skipped: %s", name, error)
                report.rows += [_skipped(site, model, name, error) for model in chosen]
                continue
            _warn_of_one_device(site, replica)
            for model in chosen:
                with report.collecting(), site.writing(name, [model], "backup"):
                    _backup_model(site, model, replica, report, proven, run)
    return report.close()


def _skipped(site: Site, model: str, name: str, error: SteelyardError) -> Row:
    last = next((at for at, copy, outcome, _ in site.history.events("backup", model, 200) if copy == name and outcome == "ok"), None)
    facts = {"action": "skipped", "why": error.message, "last_good_at": last, "bytes_written": 0}
    return Row(model, "", name, "", facts, 0)


def _warn_of_one_device(site: Site, replica: Copy) -> None:
    if isinstance(replica, FolderCopy) and device_of(replica.root) == device_of(site.store.root):
        log.warning("%s lies on the same device as the store: it guards against mistakes, not against the death of the drive", replica.name)


def _backup_model(site: Site, model: str, replica: Copy, report: Report, proven: dict[tuple[str, str], Finding], run: Run) -> None:
    locked = site.locked_model(model)
    manifest = site.manifest(model, locked.commit) if locked else None
    if locked is None or manifest is None or not manifest.files:
        raise Missing(path=model, hint=f"nothing is held of it yet; run: steelyard download {model}")
    absent = [file.path for file in locked.files if manifest.get(file.path) is None]
    if absent:
        raise Missing(path=f"{model}: {absent[0]}", hint=f"the store is not complete; run: steelyard download {model}")
    there = run(look_at_replica, site, replica.name, manifest)
    todo = [entry for entry in manifest.files if there[entry.path].verdict == "missing"]
    if isinstance(replica, FolderCopy):
        check_room([Need(replica.root, sum(entry.size_bytes for entry in todo))])
    carried: list[Carried] = []
    for entry in manifest.files:
        if there[entry.path].verdict not in {"ok", "missing"}:
            carried.append(Carried(entry.path, "refused", error=_bad_there(replica, manifest, entry, there[entry.path])))
    # Files that are not read for copying are read for their own sake: a backup never passes over a source that has rotted.
    idle = [entry for entry in manifest.files if entry not in todo and (model, entry.path) not in proven]
    for batch in batches(idle):
        proven |= {(model, path): finding for path, finding in run(prove_source, site, manifest, batch).items()}
    for entry in manifest.files:
        finding = proven.get((model, entry.path))
        if entry in todo or there[entry.path].verdict != "ok":
            continue
        if finding is None or finding.ok:
            carried.append(Carried(entry.path, "unchanged"))
        else:
            carried.append(
                Carried(entry.path, "refused", error=_rotten(site, manifest, entry, finding.bad_ranges, replica.name, finding.verdict))
            )
    for batch in batches(todo):
        carried += run(copy_files, site, replica.name, manifest, batch)
    whole = all(one.error is None for one in carried)
    if whole:
        run(seal_snapshot, site, replica.name, manifest)
    site.history.event(
        "backup", model, replica.name, "ok" if whole else "failed", commit=manifest.commit, bytes=sum(one.bytes_written for one in carried)
    )
    for one in sorted(carried, key=lambda one: one.path):
        facts = {"action": one.action, "bytes_written": one.bytes_written, "commit": manifest.commit, "sha256": manifest[one.path].sha256}
        report.rows.append(
            Row(model, one.path, replica.name, replica.where(manifest, one.path), facts, one.error.exit_code if one.error else 0)
        )
        if one.error is not None:
            report.errors.append(one.error)


def _bad_there(replica: Copy, manifest: Manifest, entry: FileEntry, finding: Finding) -> SteelyardError:
    return Corrupt(
        path=replica.where(manifest, entry.path),
        why=f"{finding.verdict} in the replica ({finding.why}), so it was left as it is",
        ranges=finding.bad_ranges,
        hint=f"run: steelyard repair {manifest.model} --copy {replica.name}",
    )


def _rotten(site: Site, manifest: Manifest, entry: FileEntry, ranges: Sequence[Range], target: str, verdict: str) -> SteelyardError:
    shown = ", ".join(f"bytes {start:,} to {end:,}" for start, end in list(ranges)[:3]) or verdict
    path = site.store.where(manifest, entry.path)
    return SourceRotten(path=path, why=shown, target=target, ranges=tuple(ranges), hint=f"run: steelyard repair {manifest.model}")


# --- steps


def look_at_replica(site: Site, copy: str, manifest: Manifest) -> dict[str, Finding]:
    """What of *manifest* the replica has: by size and times where it was proven before and nothing changed since, else by its bytes."""
    replica = site.replicas[copy]
    found = {}
    for entry in manifest.files:
        last = site.history.latest(copy, manifest.model, manifest.commit, entry.path)
        finding = replica.judge(manifest, entry, Look("quick"), last.finding if last else None)
        if finding.verdict in {"unverified", "corrupt", "unreadable"}:
            finding = replica.judge(manifest, entry, Look(), last.finding if last else None)
            site.history.record(copy, manifest.model, manifest.commit, entry.path, finding)
        found[entry.path] = finding
    return found


def prove_source(site: Site, manifest: Manifest, entries: Sequence[FileEntry]) -> dict[str, Finding]:
    """Judge files of the store. Those below 1 MiB whose state (ctime too) is as at their last proof are not read again."""
    found = {}
    for entry in entries:
        last = site.history.latest("store", manifest.model, manifest.commit, entry.path)
        quick = site.store.judge(manifest, entry, Look("quick"), last.finding if last else None) if entry.size_bytes < MIB else None
        finding = quick if quick is not None and quick.ok else site.store.judge(manifest, entry, Look())
        if finding is not quick:
            site.history.record("store", manifest.model, manifest.commit, entry.path, finding)
        found[entry.path] = finding
    return found


def copy_files(site: Site, copy: str, manifest: Manifest, entries: Sequence[FileEntry]) -> list[Carried]:
    """Carry files from the store to a replica, each piece proven as it is read and again after it is written."""
    replica = site.replicas[copy]
    done = []
    for entry in entries:
        try:
            reader = ProvenReader(entry, {"store": site.store.open(manifest, entry)})
        except SteelyardError as error:
            done.append(Carried(entry.path, "refused", error=_rotten(site, manifest, entry, (), copy, error.message)))
            continue
        try:
            brought = replica.bring(manifest, entry, reader)
        except Rotten as rotten:
            finding = site.store.judge(manifest, entry, Look())
            site.history.record("store", manifest.model, manifest.commit, entry.path, finding)
            ranges = merge_ranges([*finding.bad_ranges, rotten.where])
            done.append(Carried(entry.path, "refused", error=_rotten(site, manifest, entry, ranges, copy, finding.verdict)))
            log.error("%s · %s is %s in the store; nothing was carried to %s", manifest.model, entry.path, finding.verdict, copy)
            continue
        finally:
            reader.close()
        finding = replica.judge(manifest, entry, Look("quick"), None)
        proof = Finding("ok", proof="pieces, read back", bytes_read=entry.size_bytes, stat=finding.stat)
        site.history.record(copy, manifest.model, manifest.commit, entry.path, proof)
        log.info("%s · %s → %s: %s", manifest.model, entry.path, copy, brought.action)
        done.append(Carried(entry.path, brought.action, brought.bytes_written))
    return done


def seal_snapshot(site: Site, copy: str, manifest: Manifest) -> None:
    """Publish the snapshot's records on the replica: from then on it is one."""
    site.replicas[copy].seal(manifest)
