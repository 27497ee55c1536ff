"""scrub: verify everything a bit at a time, oldest proof first. What was looked at longest ago is always next, so no place needs to be remembered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.config import parse_duration, parse_size
from steelyard.copies.base import Copy, Look
from steelyard.disk import gb
from steelyard.errors import BadRecord, SteelyardError, UsageError
from steelyard.manifest import FileEntry, Manifest
from steelyard.parity import held_parity
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.steps import Run, run_here
from steelyard.traffic import bucket_of, closed
from steelyard.verify import finding_row, judge_files
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

BUSY_PERCENT = 40.0
"""Above this share of time lost to disk waits [percent, over 10 s] the machine is at work and we wait."""
LONGEST_WAIT_S = 300.0


@dataclass(frozen=True)
class Budget:
    """How much one scrub may read, or how long it may take; both None: everything. At least one file is always looked at."""

    size_bytes: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str | None) -> Budget:
        """ "50GB" or "30min". :raises UsageError:"""
        if text is None:
            return cls()
        try:
            return cls(seconds=float(str(parse_duration(text))))
        except ValueError:
            pass
        try:
            return cls(size_bytes=int(str(parse_size(text))))
        except ValueError as error:
            raise UsageError(why=f"{text!r} is neither a size nor a time", hint="write --budget 50GB or --budget 30min") from error

    def allows(self, read_bytes: int, started: float) -> bool:
        return not (
            (self.size_bytes is not None and read_bytes >= self.size_bytes)
            or (self.seconds is not None and time.monotonic() - started >= self.seconds)
        )


@dataclass(frozen=True)
class Due:
    """A file of a copy, and when it was last looked at by its bytes ("" is never)."""

    at: str
    copy: str
    manifest: Manifest
    entry: FileEntry


def scrub(site: Site, models: Sequence[str] = (), *, budget: str | None = None, run: Run = run_here) -> Report:
    """Read back *models* (none: all) in every copy that is there, oldest look first, until *budget* is spent."""
    report = Report("scrub")
    allowed = Budget.parse(budget)
    chosen = site.config.chosen(list(models))
    if on_battery():
        log.warning("on battery: nothing was read; the next scrub goes on with the oldest look")
        report.extra["note"] = "skipped: on battery"
        return report.close()
    started = time.monotonic()
    read_bytes = _roll(site, chosen, allowed, report, run)
    queue = run(find_due, site, chosen)
    done = 0
    for due in queue:
        if done and not allowed.allows(read_bytes, started):
            break
        wait_while_busy()
        with report.collecting():
            finding = run(judge_files, site, due.copy, due.manifest, [due.entry], Look("deep", cold=True))[due.entry.path]
            row = finding_row(site.copies[due.copy], due.manifest, due.entry.path, finding, due.manifest.commit)
            report.rows.append(
                Row(row.model, row.file, row.copy, row.path, {**row.facts, "last_proven_before": due.at or None}, row.exit_code)
            )
            read_bytes += finding.bytes_read
        done += 1
    report.extra |= {"bytes_read": read_bytes, "files_left": len(queue) - done}
    if done < len(queue):
        report.extra["note"] = f"{gb(read_bytes)} read; {len(queue) - done} files are next time's"
    return report.close()


def _roll(site: Site, chosen: Sequence[str], allowed: Budget, report: Report, run: Run) -> int:
    """The share of each bucket that its config asks for (proof_days, egress_per_day); bytes read."""
    total = 0
    for name in site.replicas:
        replica = bucket_of(site, name)
        if replica is None or not replica.looker.rolls:
            continue
        if (late := closed(site, name)) is not None:
            log.warning("%s is passed over: %s", name, late.message)
            continue
        with report.collecting():
            left = None if allowed.size_bytes is None else max(0, allowed.size_bytes - total)
            facts, rows = run(read_share, site, name, chosen, left)
            report.rows += rows
            report.extra.setdefault("shares", {})[name] = facts
            total += facts["bytes_read"]
    return total


def read_share(site: Site, name: str, models: Sequence[str], most_bytes: int | None) -> tuple[dict[str, Any], list[Row]]:
    """Step: read back what is due of a bucket, longest unread first, and record what it proved. Facts about the whole, and a row a file.

    :raises OtherSide: when the store is away; what was read before is noted.
    """
    replica = bucket_of(site, name)
    assert replica is not None
    replica.ready(write=False)
    manifests = _manifests(site, name, replica, models)
    allowance, done = replica.looker.roll(manifests, most_bytes)
    rows = []
    for share, finding in done:
        if finding.verdict != "unverified":  # a part of it read says nothing against what was proven of the whole before
            site.history.record(name, share.manifest.model, share.manifest.commit, share.entry.path, finding)
        row = finding_row(replica, share.manifest, share.entry.path, finding, share.manifest.commit)
        rows.append(replace(row, facts={**row.facts, "bytes_read": finding.bytes_read}))
        if not finding.ok:
            log.error("%s · %s in %s: %s %s", share.manifest.model, share.entry.path, name, finding.verdict, finding.why)
    wanted = replica.settings.proof_days
    cycle = allowance.cycle_days
    if wanted and cycle is not None and cycle > wanted + 0.5:
        log.warning(
            "%s: egress_per_day is too small to read %s once in %d days; it takes %.0f", name, gb(allowance.total_bytes), wanted, cycle
        )
    facts = {
        "bytes_read": sum(finding.bytes_read for _, finding in done),
        "allowed_bytes": allowance.now_bytes,
        "total_bytes": allowance.total_bytes,
        "never_read_bytes": allowance.never_bytes,
        "oldest": datetime.fromtimestamp(allowance.oldest, UTC).isoformat(timespec="seconds") if allowance.oldest else None,
        "cycle_days": None if cycle is None else round(cycle, 1),
    }
    return facts, rows


def find_due(site: Site, models: Sequence[str]) -> list[Due]:
    """Every file of every copy that can be read now, longest unproven first."""
    found: list[Due] = []
    for name, copy in site.copies.items():
        if (bucket := bucket_of(site, name)) is not None and (bucket.looker.rolls or closed(site, name)):
            continue  # a share of it was read, or its hours are others
        try:
            copy.ready(write=False)
        except SteelyardError as error:
            log.warning("%s is passed over: %s", name, error)
            continue
        for manifest in _manifests(site, name, copy, models):
            proofs = site.history.latest_of(name, manifest.model, manifest.commit)
            for held in (manifest, _parity_of(copy, manifest)):
                found += [Due(last.at if (last := proofs.get(one.path)) else "", name, held, one) for one in held.files] if held else []
    return sorted(found, key=lambda due: due.at)


def _manifests(site: Site, name: str, copy: Copy, models: Sequence[str]) -> list[Manifest]:
    """What there is to read in a copy: each snapshot of each model that was agreed on."""
    found = []
    for model in models:
        locked = site.locked_model(model)
        if locked is None:
            continue
        for commit in [locked.commit] if name in {"store", "hub-cache"} else copy.commits(model):
            try:
                manifest = site.manifest(model, commit)
                if not manifest.files and name in site.replicas:
                    manifest = copy.manifest(model, commit) or manifest
            except SteelyardError as error:
                log.warning("%s · %s: %s", name, model, error)
                continue
            found.append(manifest)
    return found


def _parity_of(copy: Copy, manifest: Manifest) -> Manifest | None:
    try:
        return held_parity(copy, manifest)
    except BadRecord as error:
        log.warning("%s: %s", copy.name, error.message)
        return None


def on_battery() -> bool:
    """Whether this machine has a battery and no mains is plugged in. Unknown is no."""
    kinds = {}
    for supply in Path("/sys/class/power_supply").glob("*"):
        try:
            kind = (supply / "type").read_text(encoding="ascii").strip()
            online = (supply / "online").read_text(encoding="ascii").strip() if kind != "Battery" else ""
        except OSError:
            continue
        kinds[supply.name] = (kind, online)
    mains = [online for kind, online in kinds.values() if kind != "Battery"]
    return any(kind == "Battery" for kind, _ in kinds.values()) and bool(mains) and "1" not in mains


def disk_pressure() -> float | None:
    """Share of the last 10 s in which work waited for a disk [percent]; None where the kernel does not tell (proc pressure stall information)."""
    try:
        line = Path("/proc/pressure/io").read_text(encoding="ascii").splitlines()[0]
        return float(line.split("avg10=")[1].split()[0])
    except (OSError, IndexError, ValueError):
        return None


def wait_while_busy() -> None:
    """Give way to whoever uses the disk, for five minutes at most; then go on, or a busy machine would never be scrubbed."""
    ends = time.monotonic() + LONGEST_WAIT_S
    told = False
    while (pressure := disk_pressure()) is not None and pressure > BUSY_PERCENT and time.monotonic() < ends:
        if not told:
            log.info("the disk is busy (%.0f %% of the time waits); giving way", pressure)
            told = True
        current_watch().pause(5.0)
