"""repair: replace bad pieces by proven ones from any copy. Only a recorded digest decides who is right, never the time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from steelyard.copies.base import Copy, Finding, Look, ProvenReader, Rotten, piece_holds
from steelyard.errors import BadRecord, Corrupt, Missing, Refused, SteelyardError
from steelyard.lock import LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.report import Report, Row
from steelyard.restore import candidates, known_manifest
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.verify import finish_switch, judge_by_lock, judge_files

log = logging.getLogger("steelyard")

MENDABLE = {"corrupt", "missing", "unreadable"}


def repair(site: Site, models: Sequence[str] = (), *, copy: str = "store", dry_run: bool = False, run: Run = run_here) -> Report:
    """Judge *models* in *copy* ("all": every copy that is there) and mend what is bad; *dry_run* says what would be moved, from where."""
    report = Report("repair")
    names = list(site.copies) if copy == "all" else [site.copy(copy).name]
    chosen = site.config.chosen(list(models))
    for name in names:
        with report.collecting():
            try:
                site.copies[name].ready(write=not dry_run)
            except Refused as error:
                if copy != "all":
                    raise
                log.warning("%s is skipped: %s", name, error)
                continue
            for model in chosen:
                with report.collecting():
                    finish_switch(site, model)
                with report.collecting(), site.writing(name, [model], "repair"):
                    _repair_model(site, model, name, dry_run, report, run)
    return report.close()


def _readable(site: Site, but: str) -> dict[str, Copy]:
    found: dict[str, Copy] = {}
    for name, copy in site.copies.items():
        if name == but:
            continue
        try:
            copy.ready(write=False)
        except SteelyardError as error:
            log.info("%s can't help: %s", name, error)
            continue
        found[name] = copy
    return found


def _repair_model(site: Site, model: str, name: str, dry_run: bool, report: Report, run: Run) -> None:
    locked = site.locked_model(model)
    where = site.copies[name]
    others = _readable(site, name)
    if locked is None:
        raise Missing(path=model, hint=f"never downloaded; run: steelyard download {model}")
    for commit in _commits(where, model, name, locked):
        manifest, trusted = _manifest(site, model, commit, locked, {**others, **({name: where} if name in site.replicas else {})})
        if not trusted and not dry_run and name == "store":
            # Our own record was lost: a replica's is as good once its files have proven right, which mending does by SHA-256.
            site.store.seal(manifest)
        mended = False
        for entry in manifest.files:
            finding = run(judge_files, site, name, manifest, [entry], Look(depth="deep"))[entry.path]
            if finding.verdict not in MENDABLE:
                verdict = "nothing-to-do" if finding.ok else "beyond-repair"
                report.rows.append(_row(where, manifest, entry, verdict, 0, (), finding, 0 if finding.ok else 1))
                continue
            row = run(mend_file, site, name, manifest, trusted, entry, finding, list(others), dry_run)
            mended = mended or row.outcome == "repaired"
            report.rows.append(row)
        if dry_run:
            continue
        _records(site, where, name, manifest, mended)


def _commits(where: Copy, model: str, name: str, locked: LockedModel) -> list[str]:
    """Which snapshots of the copy are mended: all that a replica has, the locked one else."""
    return (where.commits(model) or [locked.commit]) if name not in {"store", "hub-cache"} else [locked.commit]


def _manifest(site: Site, model: str, commit: str, locked: LockedModel, copies: dict[str, Copy]) -> tuple[Manifest, bool]:
    """The manifest to judge by; one that was lost is made anew from local bytes that the lock proves, else taken from a copy."""
    if commit == locked.commit:
        unknown = [file for file in locked.files if site.manifest(model, commit).get(file.path) is None]
        if unknown:
            judge_by_lock(site, model, locked, unknown)
    return known_manifest(site, model, commit, locked, copies)


def _records(site: Site, where: Copy, name: str, manifest: Manifest, mended: bool) -> None:
    """Records that were lost or damaged are written anew: the snapshot's own, the cache's links, model_info.json."""
    if name == "hub-cache":
        for entry in manifest.files:
            site.hub_cache.link(manifest, entry.path)
        site.hub_cache.seal(manifest)
    elif name == "store":
        if not site.store.model_info_holds(site.held_manifests()):
            site.store.write_model_info(site.held_manifests())
    else:
        try:
            held = where.manifest(manifest.model, manifest.commit)
        except BadRecord:
            held = None
        if mended or held != manifest:
            where.seal(manifest)


def _row(
    where: Copy,
    manifest: Manifest,
    entry: FileEntry,
    action: str,
    moved: int,
    sources: Sequence[str],
    finding: Finding,
    exit_code: int = 0,
    why: str = "",
) -> Row:
    facts: dict[str, object] = {
        "action": action,
        "bytes_moved": moved,
        "sources": list(sources),
        "commit": manifest.commit,
        "found": finding.verdict,
    }
    if finding.bad_ranges:
        facts["bad_ranges"] = [list(one) for one in finding.bad_ranges]
    if why:
        facts["why"] = why
    return Row(manifest.model, entry.path, where.name, where.where(manifest, entry.path), facts, exit_code)


def mend_file(
    site: Site, name: str, manifest: Manifest, trusted: bool, entry: FileEntry, finding: Finding, others: Sequence[str], dry_run: bool
) -> Row:
    """Step: mend one file of one copy. beyond-repair (exit 1) when a bad piece is good nowhere; the file is then as it was."""
    where = site.copies[name]
    sources = candidates(site, manifest, entry, others, hub=True)
    reader = ProvenReader(entry, sources, pieces_are_trusted=trusted)
    try:
        if dry_run:
            return _price(where, manifest, entry, finding, reader)
        if finding.verdict == "unreadable" or finding.verdict == "missing":
            # A partial or the readable pieces of the file itself are nearer than any other copy.
            with contextlib.suppress(SteelyardError):
                reader.candidates = {name: where.open(manifest, entry), **sources}
        moved = where.mend(manifest, entry, finding, reader)
    except Rotten as rotten:
        for error in rotten.errors:
            if error.transient:
                raise error from rotten
        why = str(rotten)
        return _row(where, manifest, entry, "beyond-repair", 0, (), finding, 1, why)
    finally:
        reader.close()
    used = sorted((one for one in reader.used_bytes if one != name), key=lambda one: -reader.used_bytes[one])
    after = judge_files(site, name, manifest, [entry], Look())[entry.path] if name != "hub-cache" else Finding("ok")
    if not after.ok:
        raise Corrupt(
            path=where.where(manifest, entry.path), why=f"still {after.verdict} after mending ({after.why})", ranges=after.bad_ranges
        )
    log.warning("%s · %s in %s: mended %d bytes from %s", manifest.model, entry.path, name, moved, ", ".join(used) or "itself")
    return _row(where, manifest, entry, "repaired", moved, used, finding)


def _price(where: Copy, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader) -> Row:
    """What a repair would move, and from where, by asking each local copy for just the bad pieces."""
    moved, used, lost = 0, dict[str, int](), list[tuple[int, int]]()
    for index, (start, end) in enumerate(entry.ranges):
        if finding.verdict != "missing" and not any(start < hi and lo < end for lo, hi in finding.bad_ranges):
            continue
        for name, source in reader.candidates.items():
            if name == "hub" or piece_holds(source, entry, index):
                used[name] = used.get(name, 0) + end - start
                moved += end - start
                break
        else:
            lost.append((start, end))
    if lost:
        return _row(where, manifest, entry, "beyond-repair", 0, (), finding, 1, f"{len(lost)} pieces are good in no copy")
    return _row(where, manifest, entry, "would-repair", moved, sorted(used, key=lambda one: -used[one]), finding, 1)
