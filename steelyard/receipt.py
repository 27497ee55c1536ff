"""The receipt of a backup that found nothing to do: what it looked at and what it said, for steelyard.again."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.again import GOOD_FOR_S, answer_path, look_at, mounts, receipt_path
from steelyard.config import MountConfig
from steelyard.copies.folder import FolderCopy
from steelyard.copies.marker import MARKER
from steelyard.copies.mount import MountReplica
from steelyard.disk import existing_parent, write_atomically
from steelyard.errors import SteelyardError
from steelyard.file_systems import file_systems
from steelyard.manifest import Manifest
from steelyard.names import slug
from steelyard.orchestrator import state_path
from steelyard.records import record_names
from steelyard.report import Report
from steelyard.samples import APART_S
from steelyard.site import Site
from steelyard.store import MOVED
from steelyard.terminal import as_line

RACY_S = 2.0
"""The coarsest grain of a file system's times (FAT)."""


def world_of(site: Site, report: Report) -> dict[str, Any] | None:
    """What decided that there was nothing to do; None where more than the states of files did."""
    if report.errors or any(row.outcome != "unchanged" for row in report.rows):
        return None
    quiet: list[tuple[str, Manifest]] = report.quiet
    replicas: dict[str, MountReplica] = {}
    manifests: dict[str, Manifest] = {}
    for name, manifest in quiet:
        replica, settings = site.replicas[name], site.config.replicas[name]
        # Parity, several copies and the like have rules of their own, and ages that move by themselves.
        if not isinstance(replica, MountReplica) or not isinstance(settings, MountConfig) or settings.parity is not None:
            return None
        if site.config.models[manifest.model].min_copies > 1:
            return None
        replicas[name], manifests[manifest.model] = replica, manifest
    if not replicas:
        return None
    ours = site.store.ours
    world = [
        site.path, site.lock_path, state_path(), Path("/etc/fstab"), ours / MOVED,
        *(ours / "manifests" / model / f"{manifest.commit}.json" for model, manifest in manifests.items()),
        *(ours / "switch" / f"{model}.json" for model in manifests),
        *(ours / "targets" / f"{name}.json" for name in replicas),
        *(replica.ours / MARKER for replica in replicas.values()),
    ]  # fmt: skip
    snapshots = [_snapshot(site, name, manifest) for name, manifest in quiet] + [
        _snapshot(site, "store", one) for one in manifests.values()
    ]
    return {
        "made": time.time(),
        "world": look_at([str(path) for path in world]),
        "mounts": mounts(),
        "locks": [str(replicas[name].ours / "locks" / f"{slug(f'{name} {manifest.model}')}.lock") for name, manifest in quiet],
        "probes": [str(replica.ours) for replica in replicas.values()],
        "copies": snapshots,
        "history": str(site.history.path),
        "backups": [[one.model, name, {"commit": one.commit, "bytes": 0, "drive": replicas[name].drive.ident()}] for name, one in quiet],
        "disks": [[one.point, str(existing_parent(one.places[0].path))] for one in file_systems(site)],
        "apart_s": APART_S,
    }


def _snapshot(site: Site, name: str, manifest: Manifest) -> dict[str, Any]:
    copy = site.copies[name]
    prefixes = {entry.path.rpartition("/")[0] for entry in manifest.files}
    records: list[list[str]] = []
    if isinstance(copy, MountReplica):
        folder = copy.folder_of(manifest.model, manifest.commit)
        records = [[f"/{record}", str(folder / record)] for record in record_names(manifest).values()]
    assert isinstance(copy, FolderCopy)
    return {
        "of": [name, manifest.model, manifest.commit],
        "paths": "\0".join(entry.path for entry in manifest.files),
        "sizes": " ".join(str(entry.size_bytes) for entry in manifest.files),
        "folders": {prefix: str(copy.folder_below(manifest, prefix)) for prefix in prefixes},
        "records": records,
    }


class Listening:
    """What a command says while it runs, for its receipt; and what it must not have been changed behind."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._began = time.time()
        self._mounts = ""  # and no receipt, where there is no /proc to tell
        with contextlib.suppress(OSError):
            self._mounts = mounts()
        self._said: list[str] = []
        self._heard = Heard(self._said)
        logging.getLogger("steelyard").addHandler(self._heard)

    def keep(self, report: Report, told: str, *, as_json: bool) -> None:
        """Leave the receipt, where the answer is one that can be given again."""
        logging.getLogger("steelyard").removeHandler(self._heard)
        receipt = report.receipt
        if receipt is None or receipt["mounts"] != self._mounts or self._changed_lately(receipt["world"]):
            return
        before, seconds, after = told.partition(f'"seconds": {report.seconds}' if as_json else f" in {report.seconds:.1f} s")
        if not seconds:
            return
        # As it was written: what stdout can't show has been escaped.
        head, tail = (
            text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")
            for text in ((f'{before}"seconds": ', after) if as_json else (f"{before} in ", f" s{after}"))
        )
        record = {**receipt, "said": self._said, "json": as_json, "seconds_at": len(head), "answer_bytes": len(head) + len(tail)}
        with contextlib.suppress(OSError, SteelyardError, ValueError):
            path = Path(receipt_path(self._argv))
            path.unlink(missing_ok=True)
            write_atomically(Path(answer_path(str(path))), head + tail, 0o600)
            write_atomically(path, json.dumps(record).encode(), 0o600)
            _sweep(path.parent)

    def _changed_lately(self, world: dict[str, list[int] | None]) -> bool:
        # Changed while it ran, or so shortly before that its time would not show a second change: the receipt might be of another world.
        since_ns = (self._began - RACY_S) * 1e9
        return any(state is not None and state[2] >= since_ns for state in world.values())


class Heard(logging.Handler):
    """Keeps the lines that a person would have read on stderr."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(as_line(record))


def _sweep(folder: Path) -> None:
    """Receipts that are too old to be used go; there are few."""
    for path in [*folder.glob("*.json"), *folder.glob("*.answer")]:
        if time.time() - path.stat().st_mtime > GOOD_FOR_S:
            path.unlink(missing_ok=True)
