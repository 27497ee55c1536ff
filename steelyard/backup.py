"""backup: bring replicas up to date. Only proven bytes are carried, nothing is deleted, and what a replica holds is never overwritten."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field

from steelyard.abilities import refuse_what_does_not_fit
from steelyard.backup_rows import bad_there, tell, tell_of_traffic, tell_plan
from steelyard.batches import batches
from steelyard.carry import Carried, carry_group, groups, rotten
from steelyard.copies.base import Copy, Finding, Look
from steelyard.copies.folder import FolderCopy
from steelyard.copies.judging import as_text
from steelyard.copies.mount import MountReplica
from steelyard.errors import Missing, MountAbsent, OutsideHours, Refused, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.papers import carry_papers
from steelyard.parity import lacks_parity, make_parity
from steelyard.pieces import MIB, in_threads
from steelyard.protection import check_copies, skipped, tell_of_the_shelf, warn_of_weakness
from steelyard.report import Report, Row
from steelyard.settled import is_settled, settle
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.steps import Run, run_here
from steelyard.traffic import bucket_of, closed, keep_to_hours, plan_traffic, shapes
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class Plan:
    """What a replica lacks of a model: *there* is its verdict on every file; *settled*, that nothing changed since all of it was proven."""

    manifest: Manifest
    there: dict[str, Finding]
    settled: bool
    todo: list[FileEntry] = field(default_factory=list)


def backup(site: Site, models: Sequence[str] = (), *, to: str | None = None, dry_run: bool = False, run: Run = run_here) -> Report:
    """Bring *models* (none: all) to the replica *to* (None: every replica; an absent drive is then skipped, with the age of its last good copy).

    Refuses before it writes where the mount, the drive, the room or the file system is not what the plan needs. *dry_run*: only the plan is told.
    """
    report = Report("backup")
    chosen = site.config.chosen(list(models))
    targets = [site.replica(to).name] if to else list(site.replicas)
    if not targets:
        log.warning("the config has no replicas: there is nowhere to back up to")
    proven: dict[tuple[str, str], Finding] = {}
    reports = {name: Report("backup") for name in targets}
    before = shapes(site, targets)

    def in_turn(names: Sequence[str]) -> None:
        for name in names:
            with reports[name].collecting():
                keep_to_hours(site, name, by_name=bool(to))
                late = closed(site, name)
                if late is not None and not dry_run:
                    if not to:
                        reports[name].rows += skipped(site, chosen, name, late)
                        continue
                    log.info("%s; it was asked for by name, so this goes on", late.message)
                try:
                    _to_replica(site, chosen, name, reports[name], proven, run, dry_run)
                except MountAbsent as error:
                    if to:
                        raise
                    reports[name].rows += skipped(site, chosen, name, error)

    together = _by_disk(site, targets) if len(targets) > 1 else []
    if len(together) > 1 and run is run_here:
        # The threads carry the watch of this one, so that a stop request and the progress reach all of them.
        contexts = {names[0]: copy_context() for names in together}
        in_threads(lambda names: contexts[names[0]].run(in_turn, names), together, threads=len(together), stop=current_watch().stop)
    else:
        in_turn(targets)
    for one in reports.values():
        report.rows += one.rows
        report.errors += one.errors
        report.quiet += one.quiet
        report.extra.setdefault("plan", {}).update(one.extra.get("plan", {}))
    tell_of_traffic(site, report, before, dry_run)
    if dry_run:
        return report.close()
    for model in chosen:
        with report.collecting():
            check_copies(site, model)
    return report.close()


def _by_disk(site: Site, names: Sequence[str]) -> list[list[str]]:
    """Replicas that share a disk take turns, others are written at once."""
    disks: dict[str, list[str]] = {}
    for name in names:
        try:
            site.replicas[name].ready(write=False)
            disk = site.replicas[name].failure_domain()
        except SteelyardError:
            disk = name  # away: it says so in its own turn
        disks.setdefault(disk, []).append(name)
    return list(disks.values())


def _to_replica(
    site: Site, chosen: Sequence[str], name: str, report: Report, proven: dict[tuple[str, str], Finding], run: Run, dry_run: bool = False
) -> None:
    """:raises MountAbsent: before anything was written, when the drive is not there or is another one."""
    replica = site.replicas[name]
    replica.ready(write=False)
    plans: dict[str, Plan] = {}
    for model in chosen:
        with report.collecting():
            plans[model] = _plan(site, model, replica, run)
    if dry_run:
        report.extra["plan"] = {name: plan_traffic(site, name, {model: (plan.manifest, plan.todo) for model, plan in plans.items()})}
        for plan in plans.values():
            tell_plan(report, replica, plan.manifest, plan.there)
    if not plans or dry_run:
        return
    if isinstance(replica, MountReplica):
        replica.drive.check(write=True)
        for model, plan in list(plans.items()):
            with report.collecting(), replica.drive.held_where_it_ends() as there:
                try:
                    refuse_what_does_not_fit(there, name, {entry.path: entry.size_bytes for entry in plan.todo})
                except Refused:
                    del plans[model]
                    raise
        if not plans:
            return
    replica.ready(write=True)
    warn_of_weakness(site, replica)
    for model, plan in plans.items():
        with report.collecting(), site.writing(name, [model], "backup"):
            _carry_out(site, replica, plan, report, proven, run)
    report.rows += tell_of_the_shelf(site, chosen, replica)


def _plan(site: Site, model: str, replica: Copy, run: Run) -> Plan:
    """Reads only. :raises Missing: when the store is not complete. :raises NoSpace:"""
    locked = site.locked_model(model)
    if locked is not None and (bucket := bucket_of(site, replica.name)) is not None:
        bucket.foresee(model, locked.commit, len(locked.files))
    manifest = site.manifest(model, locked.commit) if locked else None
    if locked is None or manifest is None or not manifest.files:
        raise Missing(path=model, hint=f"nothing is held of it yet; run: steelyard download {model}")
    absent = [file.path for file in locked.files if manifest.get(file.path) is None]
    if absent:
        raise Missing(path=f"{model}: {absent[0]}", hint=f"the store is not complete; run: steelyard download {model}")
    if is_settled(site, replica, manifest, manifest.files):
        return Plan(manifest, {}, True)
    there = run(look_at_replica, site, replica.name, manifest)
    todo = [entry for entry in manifest.files if there[entry.path].verdict == "missing"]
    if isinstance(replica, FolderCopy):
        check_room([Need(replica.root, replica.need_bytes(manifest, todo))])
    return Plan(manifest, there, False, todo)


def _carry_out(site: Site, replica: Copy, plan: Plan, report: Report, proven: dict[tuple[str, str], Finding], run: Run) -> None:
    began = time.monotonic()
    manifest, model = plan.manifest, plan.manifest.model
    carried = [
        Carried(entry.path, "refused", error=bad_there(replica, manifest, entry, found))
        for entry in manifest.files
        if (found := plan.there.get(entry.path)) and found.verdict not in {"ok", "missing"}
    ]
    todo = {entry.path for entry in plan.todo}
    held = [entry for entry in manifest.files if plan.settled or plan.there[entry.path].verdict == "ok"]
    # Files that are not read for copying are read for their own sake: a backup never passes over a source that has rotted.
    idle = [entry for entry in manifest.files if entry.path not in todo and (model, entry.path) not in proven]
    small = [entry for entry in manifest.files if entry.size_bytes < MIB]
    store_settled = is_settled(site, site.store, manifest, small)
    if store_settled:
        idle = [entry for entry in idle if entry.size_bytes >= MIB]
    for batch in batches(idle):
        proven |= {(model, path): finding for path, finding in run(prove_source, site, manifest, batch).items()}
    for entry in held:
        finding = proven.get((model, entry.path))
        if finding is None or finding.ok:
            carried.append(Carried(entry.path, "unchanged"))
        else:
            carried.append(Carried(entry.path, "refused", error=rotten(site, manifest, entry, finding.bad_ranges, replica.name, finding)))
    protected: list[Carried] = []
    try:
        for batch in batches(plan.todo):
            carried += run(copy_files, site, replica.name, manifest, batch)
        whole = all(one.error is None for one in carried)
        if whole and not plan.settled:
            run(seal_snapshot, site, replica.name, manifest)
        elif plan.settled and (bucket := bucket_of(site, replica.name)) is not None:
            bucket.abort_orphans()
        if whole and lacks_parity(replica, manifest):
            with report.collecting():
                protected = run(make_parity, site, replica.name, manifest, "store")
    except SteelyardError as error:
        if error.exit_code == 130:
            raise
        # The drive went away, or is full: what is there stays and is counted, the rest is for the next run.
        whole = False
        done = {one.path for one in carried}
        if isinstance(error, OutsideHours):
            log.warning("%s", error.message)
            carried += [Carried(path, "skipped") for path in sorted(todo - done)]
        else:
            carried += [Carried(path, "refused") for path in sorted(todo - done)]
            report.errors.append(error)
    if whole and not plan.settled:
        settle(site, replica, manifest, manifest.files)
    if whole and not store_settled:
        settle(site, site.store, manifest, small)
    if whole and plan.settled and store_settled and len(small) == len(manifest.files) and not protected:
        report.quiet.append((replica.name, manifest))
    facts = {"commit": manifest.commit, "bytes": sum(one.bytes_written for one in carried), "seconds": round(time.monotonic() - began, 3)}
    if isinstance(replica, MountReplica):
        facts["drive"] = replica.drive.ident()
    site.history.event("backup", model, replica.name, "ok" if whole else "failed", **facts)
    tell(report, replica, manifest, carried)
    for one in protected:
        facts = {"action": one.action, "bytes_written": one.bytes_written, "commit": manifest.commit, "role": "parity"}
        report.rows.append(Row(model, one.path, replica.name, replica.where(manifest, one.path), facts))


# --- steps


def look_at_replica(site: Site, copy: str, manifest: Manifest) -> dict[str, Finding]:
    """What of *manifest* the replica has: by size and times where it was proven before and nothing changed since, else by its bytes."""
    replica = site.replicas[copy]
    known = site.history.latest_of(copy, manifest.model, manifest.commit)
    found: dict[str, Finding] = {}
    judged: dict[str, Finding] = {}
    try:
        for entry in manifest.files:
            last = known[entry.path].finding if entry.path in known else None
            finding = replica.judge(manifest, entry, Look("quick"), last)
            if finding.verdict in {"unverified", "corrupt", "unreadable"}:
                finding = judged[entry.path] = replica.judge(manifest, entry, Look(), last)
            found[entry.path] = finding
    finally:
        site.history.record_all(copy, manifest.model, manifest.commit, judged)
    return found


def prove_source(site: Site, manifest: Manifest, entries: Sequence[FileEntry]) -> dict[str, Finding]:
    """Judge files of the store. Those below 1 MiB whose state (ctime too) is as at their last proof are not read again."""
    known = site.history.latest_of("store", manifest.model, manifest.commit)
    found: dict[str, Finding] = {}
    judged: dict[str, Finding] = {}
    try:
        for entry in entries:
            last = known[entry.path].finding if entry.path in known else None
            finding = site.store.judge(manifest, entry, Look("quick"), last) if entry.size_bytes < MIB else None
            if finding is None or not finding.ok:
                finding = judged[entry.path] = site.store.judge(manifest, entry, Look())
            found[entry.path] = finding
    finally:
        site.history.record_all("store", manifest.model, manifest.commit, judged)
    return found


def copy_files(site: Site, copy: str, manifest: Manifest, entries: Sequence[FileEntry]) -> list[Carried]:
    """Carry files from the store to a replica, each piece proven as it is read and again after it is written.

    :raises MountAbsent, NoSpace, ReadOnly, Unreadable: when the replica fails; files carried before stay.
    """
    replica = site.replicas[copy]
    done: list[Carried] = []
    for group in groups(replica, entries):
        current_watch().check()
        carried = carry_group(site, replica, manifest, group)
        done += carried
        whole = [manifest[one.path] for one in carried if one.error is None]
        stats = replica.stats(manifest, whole) if isinstance(replica, FolderCopy) else {}
        proofs = {}
        for entry in whole:
            stat = as_text(stats[entry.path]) if entry.path in stats else replica.judge(manifest, entry, Look("quick"), None).stat
            proofs[entry.path] = Finding("ok", proof="pieces, read back", bytes_read=entry.size_bytes, stat=stat)
        site.history.record_all(copy, manifest.model, manifest.commit, proofs)
        what = group[0].path if len(group) == 1 else f"{len(group)} small files"
        log.info("%s · %s → %s: %s", manifest.model, what, copy, " ".join(sorted({one.how or one.action for one in carried})))
    return done


def seal_snapshot(site: Site, copy: str, manifest: Manifest) -> None:
    """Publish the snapshot's records on the replica: from then on it is one."""
    replica = site.replicas[copy]
    replica.seal(manifest)
    if isinstance(replica, MountReplica):
        carry_papers(site, replica, manifest.model, manifest.commit)
