"""scrub: verify everything a bit at a time, oldest proof first. What was looked at longest ago is always next, so no place needs to be remembered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.config import parse_duration, parse_size
from steelyard.copies.base import Copy, Look
from steelyard.disk import gb
from steelyard.errors import BadRecord, SteelyardError, UsageError
from steelyard.manifest import FileEntry, Manifest
from steelyard.parity import held_parity
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.steps import Run, run_here
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
    queue = run(find_due, site, chosen)
    started, read_bytes, done = time.monotonic(), 0, 0
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


def find_due(site: Site, models: Sequence[str]) -> list[Due]:
    """Every file of every copy that can be read now, longest unproven first."""
    found: list[Due] = []
    for name, copy in site.copies.items():
        try:
            copy.ready(write=False)
        except SteelyardError as error:
            log.warning("%s is passed over: %s", name, error)
            continue
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
                proofs = site.history.latest_of(name, model, commit)
                for held in (manifest, _parity_of(copy, manifest)):
                    found += [Due(last.at if (last := proofs.get(one.path)) else "", name, held, one) for one in held.files] if held else []
    return sorted(found, key=lambda due: due.at)


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
