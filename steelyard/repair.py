"""repair: replace bad pieces by proven ones from any copy. Only a recorded digest decides who is right, never the time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from steelyard.carry import Carried
from steelyard.copies.base import Copy, Look
from steelyard.copies.mount import MountReplica
from steelyard.errors import BadRecord, Missing, Refused, SteelyardError, Unreachable
from steelyard.into_store import fetch_file
from steelyard.lock import LockedModel
from steelyard.lookahead import NOTHING
from steelyard.manifest import Manifest
from steelyard.parity import held_parity, make_parity, unusable, wanted_percent
from steelyard.repair_file import repair_file
from steelyard.report import Report, Row
from steelyard.restore import known_manifest
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.verify import finish_switch, judge_by_lock, judge_files

log = logging.getLogger("steelyard")


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
    if locked is None and not (name in site.replicas and where.commits(model)):
        raise Missing(path=model, hint=f"never downloaded; run: steelyard download {model}")
    for commit in _commits(where, model, name, locked):
        if locked is not None and commit == locked.commit and name == "store":
            _rebuild_manifest(site, model, locked, others, dry_run, report, run)
        manifest, trusted = known_manifest(site, model, commit, locked, {**others, **({name: where} if name in site.replicas else {})})
        if not trusted and not dry_run and name == "store":
            # Our own record was lost: a replica's is as good once its files have proven right, which mending does by SHA-256.
            site.store.seal(manifest)
        mended = False
        sources = [*others, "hub"]
        for entry in manifest.files:
            row, error = repair_file(site, name, manifest, trusted, entry, sources, dry_run, run)
            if row is not None:
                mended = mended or row.outcome == "repaired"
                report.rows.append(row)
            if error is not None:
                report.errors.append(error)
                if isinstance(error, Unreachable):
                    sources = list(others)  # it was waited for once; the next file does without
        if dry_run:
            continue
        _records(site, where, name, manifest, mended)
        _repair_parity(site, where, manifest, report, run)


def _repair_parity(site: Site, where: Copy, manifest: Manifest, report: Report, run: Run) -> None:
    """Parity that is missing or bad is made anew, from the replica's own files, once those are whole."""
    problem = unusable(where, manifest)
    held = held_parity(where, manifest) if problem is None else None
    if problem is None and held is None:
        return
    found = run(judge_files, site, where.name, held, held.files, Look(depth="deep")) if held is not None else {}
    bad = {path: finding for path, finding in found.items() if not finding.ok}
    made: dict[str, Carried] = {}
    if (problem is not None or bad) and wanted_percent(where) is not None:
        if any(row.exit_code for row in report.rows if row.copy == where.name and row.model == manifest.model):
            log.warning("%s: the parity of %s is bad, and so are its files: it can't be made anew", where.name, manifest.model)
        else:
            with report.collecting():
                made = {one.path: one for one in run(make_parity, site, where.name, manifest, where.name)}
    for path in sorted({*found, *made}):
        finding = bad.get(path)
        action = "repaired" if path in made else "beyond-repair" if finding is not None else "nothing-to-do"
        facts = {
            "action": action,
            "bytes_moved": made[path].bytes_written if path in made else 0,
            "sources": [where.name] if path in made else [],
            "commit": manifest.commit,
            "role": "parity",
            "found": finding.verdict if finding is not None else problem.verdict if problem is not None else "ok",
        }
        report.rows.append(Row(manifest.model, path, where.name, where.where(manifest, path), facts, 1 if action == "beyond-repair" else 0))


def _commits(where: Copy, model: str, name: str, locked: LockedModel | None) -> list[str]:
    """Which snapshots of the copy are mended: all that a replica has, the locked one else."""
    agreed = [locked.commit] if locked is not None else []
    return (where.commits(model) or agreed) if name not in {"store", "hub-cache"} else agreed


def _rebuild_manifest(
    site: Site, model: str, locked: LockedModel, others: dict[str, Copy], dry_run: bool, report: Report, run: Run
) -> None:
    """Our record of pieces was lost: it is made anew from bytes that the lock proves. A file that proves wrong, and whose pieces no copy knows either,
    is fetched again, less what its archive's own CRCs call sound.
    """
    unknown = [file for file in locked.files if site.manifest(model, locked.commit).get(file.path) is None]
    if not unknown:
        return
    found = judge_by_lock(site, model, locked, unknown)
    wrong = [file for file in unknown if not found[file.path].ok]
    if not wrong or dry_run or _some_copy_knows(site, model, locked, others):
        return
    for file in wrong:
        with report.collecting():
            got = run(fetch_file, site, model, locked, file, NOTHING)
            facts = {
                "action": "repaired",
                "bytes_moved": got.bytes_fetched,
                "sources": ["hub"],
                "commit": locked.commit,
                "found": found[file.path].verdict,
            }
            report.rows.append(Row(model, file.path, "store", str(site.store.path_of_model(model, file.path)), facts))


def _some_copy_knows(site: Site, model: str, locked: LockedModel, others: dict[str, Copy]) -> bool:
    try:
        return len(known_manifest(site, model, locked.commit, locked, others)[0].files) == len(locked.files)
    except SteelyardError:
        return False


def _records(site: Site, where: Copy, name: str, manifest: Manifest, mended: bool) -> None:
    """Records that were lost or damaged are written anew: the snapshot's own, the cache's links, model_info.json."""
    if name == "hub-cache":
        for entry in manifest.files:
            site.hub_cache.link(manifest, entry.path)
        site.hub_cache.seal(manifest)
    elif name == "store":
        if not site.store.model_info_holds(site.held_manifests()):
            site.write_model_info()
    else:
        try:
            held = where.manifest(manifest.model, manifest.commit)
        except BadRecord:
            held = None
        spoilt = where.spoilt_records(manifest) if isinstance(where, MountReplica) else {}
        for record, why in spoilt.items():
            log.warning("%s · %s in %s is written anew: %s", manifest.model, record, name, why)
        if mended or spoilt or held != manifest:
            where.seal(manifest)
