"""The acts of `steelyard demo`: each verb once, as a flow run, and what it must show. A step that does not show it ends the demo."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.disk import gb
from steelyard.errors import NotWhole
from steelyard.report import Report, Row
from steelyard.verbs import Call

if TYPE_CHECKING:
    from steelyard.standins.hub import LoopbackHub
    from steelyard.standins.weed import SeaweedServer

REPO, FILE = "MVDream/MVDream", "sd-v2.1-base-4view.pt"
CHANGED = {"conv3.weight", "classifier.bias"}
"""The tensors that the second revision changes; check-updates must name just these, from a megabyte of ranges."""


@dataclass
class Stage:
    """What the demo stands on: a folder, and the stand-ins once they run."""

    home: Path
    say: Callable[[str], None]
    hub: LoopbackHub = field(init=False)
    s3: SeaweedServer = field(init=False)
    weights: Path = field(init=False)
    report: Report = field(default_factory=lambda: Report("demo"))
    held_back: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.home / "steelyard.toml"

    @property
    def stored(self) -> Path:
        return self.home / "models" / FILE

    def prove(self, what: str, ok: bool, seconds: float, detail: str, moved: int = 0) -> None:
        """One row of the closing table; a step that did not show what it should ends the demo."""
        self.report.rows.append(
            Row(
                facts={"action": "ok" if ok else "failed", "step": what, "seconds": round(seconds, 1), "bytes": moved, "why": detail},
                exit_code=0 if ok else 1,
            )
        )
        self.say(f"    {'ok' if ok else 'FAILED'}: {detail} ({seconds:.1f} s)")
        if not ok:
            raise NotWhole(
                why=f"the demo's step {what!r} did not show what it should: {detail}", hint="run it with --keep DIR and look at DIR"
            )


def play_acts(stage: Stage, first: str, newer: Path) -> None:
    published = _sha256(stage.weights)

    report = _flow(
        stage,
        "[2] download: what the Hub published is agreed on (steelyard.lock), fetched by ranges, proven, and only then named",
        "download",
    )
    row = report.rows[0] if report.rows else Row()
    ok = report.ok and _sha256(stage.stored) == published and row.facts["commit"] == first
    moved = int(row.facts.get("bytes_fetched", 0))
    stage.prove("download", ok, report.seconds, f"{gb(moved)} fetched, SHA-256 {published[:12]}… is the Hub's", moved)
    found = _in_hub_cache(stage)
    stage.prove(
        "hub cache",
        _sha256(found) == published,
        0.0,
        "hf_hub_download(…, local_files_only=True) finds the same bytes, so build_model does too",
    )

    report = _flow(stage, "[3] verify: every piece of every copy", "verify", copy="store")
    stage.prove("verify", report.ok, report.seconds, f"{gb(stage.stored.stat().st_size)} read, every piece as recorded when it arrived")

    report = _flow(stage, "[4] load: in a child process, weights_only, on the CPU", "load", device="cpu")
    facts = report.rows[0].facts if report.rows else {}
    stage.prove(
        "load",
        report.ok,
        report.seconds,
        f"{facts.get('tensors')} tensors, {facts.get('parameters', 0):,} parameters, all finite: {facts.get('finite')}",
    )

    report = _flow(stage, "[5] backup: to the drive and to S3, each piece proven as it is read and again where it lies", "backup")
    moved = sum(int(row.facts.get("bytes_written", 0)) for row in report.rows)
    stage.prove(
        "backup",
        report.ok and len(report.rows) == 2,
        report.seconds,
        f"{gb(moved)} written to {', '.join(row.copy for row in report.rows)}",
        moved,
    )
    report = _flow(
        stage, "    … and judged there: the drive by reading it back, S3 by its own checksum, without a download", "verify", copy="all"
    )
    proofs = ", ".join(f"{row.copy}: {row.facts.get('proof')}" for row in report.rows if row.copy in {"drive", "s3"})
    stage.prove("verify all copies", report.ok, report.seconds, proofs)

    at = stage.stored.stat().st_size // 2
    stage.say(f"[6] damage: one bit of byte {at:,} in the store is flipped, size and times set back")
    _flip(stage.stored, at)
    report = _flow(stage, "    verify must find it", "verify", copy="store")
    ranges = report.rows[0].facts.get("bad_ranges", []) if report.rows else []
    ok = report.exit_code == 1 and len(ranges) == 1 and ranges[0][0] <= at < ranges[0][1]
    stage.prove(
        "rot is found", ok, report.seconds, f"exit 1, corrupt in bytes {ranges[0][0]:,} to {ranges[0][1]:,}" if ranges else "not found"
    )
    before = _tree(stage.home / "drive")
    report = _flow(stage, "    backup must refuse to carry it on", "backup", to="drive")
    ok = report.exit_code == 1 and _tree(stage.home / "drive") == before
    stage.prove("rot is not carried on", ok, report.seconds, "exit 1, the drive is as it was")

    report = _flow(stage, "[7] repair: only the bad piece, from a copy whose piece verifies", "repair", dry_run=False)
    facts = report.rows[0].facts if report.rows else {}
    moved = int(facts.get("bytes_moved", 0))
    stage.prove(
        "repair",
        report.ok and _sha256(stage.stored) == published,
        report.seconds,
        f"{gb(moved)} from {', '.join(facts.get('sources', []))}",
        moved,
    )

    stage.say("[8] the bad day: the store's file and the whole hub cache are deleted")
    stage.stored.unlink()
    shutil.rmtree(stage.home / "hf" / "hub")
    report = _flow(
        stage, "    restore from S3 alone, proven by the Hub's SHA-256 before it gets its name", "restore", model="mvdream", source="s3"
    )
    moved = sum(int(row.facts.get("bytes_written", 0)) for row in report.rows)
    stage.prove("restore", report.ok and _sha256(stage.stored) == published, report.seconds, f"{gb(moved)} back from S3", moved)
    report = _flow(stage, "    drill: could the drive do it too?", "drill", source="drive", device="cpu")
    facts = report.rows[0].facts if report.rows else {}
    stage.prove("drill", report.ok, report.seconds, f"back and loaded in {facts.get('seconds')} s, then cleaned up")

    stage.say("[9] upstream: the Hub's main gets a second revision in which two tensors differ")
    stage.hub.add_revision(REPO, {FILE: newer}, title="Better pitch")
    report = _flow(stage, "    check-updates: what changed and what it means, changing nothing that is held", "check-updates")
    facts = report.rows[0].facts if report.rows else {}
    changed = set((facts.get("tensors") or {}).get("changed", ()))
    ok = (
        facts.get("verdict") == "update-available"
        and changed == CHANGED
        and facts.get("compatible") is True
        and _sha256(stage.stored) == published
    )
    stage.prove(
        "check-updates",
        ok,
        report.seconds,
        f"update available; {' and '.join(sorted(changed))} changed, drop-in: {facts.get('compatible')}",
    )

    report = _flow(
        stage,
        "[10] keep-models: the nightly round (verify all copies → repair → backup → check updates), as the schedule runs it",
        "keep",
        repair="auto",
    )
    stage.prove("nightly round", report.ok, report.seconds, f"{len(report.rows)} results, all well")


def _flow(stage: Stage, words: str, verb: str, **params: Any) -> Report:
    from flows.engine import run_as_flow

    stage.say(words)
    return run_as_flow(Call(verb, stage.config, params))


def _in_hub_cache(stage: Stage) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(REPO, FILE, local_files_only=True, cache_dir=stage.home / "hf" / "hub"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flip(path: Path, offset: int) -> None:
    seen = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of the replica itself (not our lock) with size and mtime."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".steelyard" not in path.parts
    }
