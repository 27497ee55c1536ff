"""What a backup says: a row for each file, done or planned, and what was asked of buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from steelyard.carry import Carried
from steelyard.copies.base import Copy, Finding
from steelyard.errors import Corrupt, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.money import Shape
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.traffic import sentence, tell_traffic


def tell_of_traffic(site: Site, report: Report, before: Mapping[str, Shape], dry_run: bool) -> None:
    traffic = {} if dry_run else tell_traffic(site, before)
    plan = report.extra.pop("plan", {})
    if dry_run:
        report.extra["plan"] = plan
    if traffic:
        report.extra["traffic"] = traffic
    notes = [sentence(name, told, ahead=dry_run) for name, told in (plan if dry_run else traffic).items()]
    if notes:
        report.extra["note"] = "; ".join(notes)


def tell_plan(report: Report, replica: Copy, manifest: Manifest, there: Mapping[str, Finding]) -> None:
    """Rows of what would be done; what is bad in the replica would be refused, and is told as it would be."""
    for entry in manifest.files:
        found = there.get(entry.path)
        verdict = "ok" if found is None else found.verdict
        action = {"ok": "unchanged", "missing": "would-copy"}.get(verdict, "refused")
        facts: dict[str, object] = {"action": action, "bytes_written": 0, "commit": manifest.commit}
        if action == "would-copy":
            facts["size_bytes"] = entry.size_bytes
        where = replica.where(manifest, entry.path)
        report.rows.append(Row(manifest.model, entry.path, replica.name, where, facts, 1 if action == "refused" else 0))
        if action == "refused" and found is not None:
            report.errors.append(bad_there(replica, manifest, entry, found))


def tell(report: Report, replica: Copy, manifest: Manifest, carried: Sequence[Carried]) -> None:
    model, name, commit, where = manifest.model, replica.name, manifest.commit, replica.where
    for one in sorted(carried, key=attrgetter("path")):
        path = one.path
        facts = {"action": one.action, "bytes_written": one.bytes_written, "commit": commit, "sha256": manifest[path].sha256}
        if one.how:
            facts["shared"] = one.how
        code = one.error.exit_code if one.error else 0
        report.rows.append(Row(model, path, name, where(manifest, path), facts, code))
        if one.error is not None:
            report.errors.append(one.error)


def bad_there(replica: Copy, manifest: Manifest, entry: FileEntry, finding: Finding) -> SteelyardError:
    return Corrupt(
        path=replica.where(manifest, entry.path),
        why=f"{finding.verdict} in the replica ({finding.why}), so it was left as it is",
        ranges=finding.bad_ranges,
        hint=f"run: steelyard repair {manifest.model} --copy {replica.name}",
    )
