"""load: does what is held really load; in a bounded child process, judged by content and never by extension."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from steelyard.checkpoint import Inspection, LoadReport, inspect, load_inspected, write_certificate
from steelyard.errors import Missing, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import MIB
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Device = Literal["auto", "cpu", "cuda"]
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".onnx", ".jit", ".pkl")


def weights_files(manifest: Manifest) -> list[FileEntry]:
    """The files of a snapshot that hold weights: by name or, where no name says so, whatever is large; else every file."""
    named = [entry for entry in manifest.files if entry.path.lower().endswith(WEIGHTS)]
    return named or [entry for entry in manifest.files if entry.size_bytes > MIB] or list(manifest.files)


def load(site: Site, models: Sequence[str] = (), *, device: Device = "auto", timeout_s: float = 600.0, run: Run = run_here) -> Report:
    """Load every weights file of *models* (none: all) from the store and say what came of it."""
    report = Report("load")
    for model in site.config.chosen(list(models)):
        with report.collecting():
            locked = site.locked_model(model)
            manifest = site.manifest(model, locked.commit) if locked else None
            if manifest is None or not manifest.files:
                raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
            for entry in weights_files(manifest):
                with report.collecting():
                    found = run(load_file, site, manifest, entry, device, timeout_s)
                    path = site.store.where(manifest, entry.path)
                    report.rows.append(Row(model, entry.path, "store", path, found.as_json(), 0 if found.verdict == "ok" else 1))
            outcome = "ok" if all(row.exit_code == 0 for row in report.rows if row.model == model) else "failed"
            site.history.event("load", model, "store", outcome, device=device)
    return report.close()


def load_file(site: Site, manifest: Manifest, entry: FileEntry, device: Device, timeout_s: float) -> LoadReport:
    """Step: load one file in a child process. :raises Missing, WrongType, Unreadable:"""
    watch = current_watch()
    allowed = frozenset(site.config.models[manifest.model].allow_globals)
    path = site.store.path_of(manifest, entry.path)
    with watch.job(f"load {entry.path}", entry.size_bytes):
        with LocalFile(path) as source:
            inspection = inspect(source, allow_globals=allowed)
        found = load_inspected(path, inspection, device, timeout_s=timeout_s, stop=watch.stop, allow_globals=allowed)
    if found.verdict == "ok":
        _certify(path, inspection, found, entry)
    log.log(
        logging.INFO if found.verdict == "ok" else logging.WARNING,
        "%s · %s: %s on %s",
        manifest.model,
        entry.path,
        found.verdict,
        found.device,
    )
    return found


def _certify(path: Path, inspection: Inspection, found: LoadReport, entry: FileEntry) -> None:
    """Leave <file>.steelyard.json beside the file: other programs can trust in milliseconds what was proven once. A store that can't be written has none."""
    try:
        write_certificate(path, inspection, found, sha256=entry.sha256)
    except (OSError, SteelyardError) as error:
        log.warning("%s: no certificate was written: %s", path.name, error)
