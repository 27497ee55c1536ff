"""drill: restore to scratch, verify, load, time it, clean up. A backup that was never restored is a hope."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.checkpoint import load_check
from steelyard.copies.base import Look
from steelyard.disk import make_folder
from steelyard.errors import Missing, MountAbsent, SteelyardError
from steelyard.loading import Device, weights_files
from steelyard.report import Report, Row
from steelyard.restore import Folder, bring_files, known_manifest
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


def drill(site: Site, models: Sequence[str] = (), *, source: str | None = None, device: Device = "cpu", run: Run = run_here) -> Report:
    """Bring *models* (none: all) back to scratch from *source* (None: each replica in turn), read them back, load them, and say how long it took."""
    report = Report("drill")
    chosen = site.config.chosen(list(models))
    for name in [site.replica(source).name] if source else list(site.replicas):
        with report.collecting():
            try:
                site.replicas[name].ready(write=False)
            except MountAbsent as error:
                if source:
                    raise
                log.warning("%s is skipped: %s", name, error)
                report.rows += [Row(model, "", name, "", {"verdict": "skipped", "why": error.message}) for model in chosen]
                continue
            for model in chosen:
                with report.collecting():
                    report.rows.append(run(drill_model, site, model, name, device))
    return report.close()


def drill_model(site: Site, model: str, name: str, device: Device) -> Row:
    """Step: one model from one replica. Its row's *minutes* is the answer; the scratch folder is gone afterwards, whatever happens."""
    locked = site.locked_model(model)
    commits = site.replicas[name].commits(model)
    if not commits:
        raise Missing(path=f"{name}: {model}", hint=f"run: steelyard backup {model} --to {name}")
    commit = locked.commit if locked and locked.commit in commits else commits[-1]
    manifest, _ = known_manifest(site, model, commit, locked, {name: site.replicas[name]})
    home = make_folder(site.store.ours / "drill")
    check_room([Need(home, manifest.size_bytes)])
    scratch = Path(tempfile.mkdtemp(prefix=f"{model}-", dir=home))
    started = time.monotonic()
    try:
        target = Folder(scratch)
        done = bring_files(site, manifest, False, manifest.files, target, [name], name)
        restored_s = time.monotonic() - started
        bad = [entry.path for entry in manifest.files if not target.judge(manifest, entry, Look()).ok]
        loaded = [load_check(target.path_of(manifest, entry.path), device, stop=current_watch().stop) for entry in weights_files(manifest)]
    except SteelyardError as error:
        site.history.event("drill", model, name, "failed", commit=commit, why=error.message)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - started
    problem = next((found for found in loaded if found.verdict != "ok"), None)
    ok = not bad and problem is None
    facts: dict[str, object] = {
        "verdict": "ok" if ok else "failed",
        "minutes": round(seconds / 60, 2),
        "restore_s": round(restored_s, 2),
        "seconds": round(seconds, 2),
        "bytes_written": sum(written for _, _, written, _ in done),
        "loaded": len(loaded) - sum(found.verdict != "ok" for found in loaded),
        "commit": commit,
    }
    if problem is not None:
        facts["why"] = f"it came back whole but does not load: {problem.verdict}"
    site.history.event(
        "drill", model, name, "ok" if ok else "failed", **{key: facts[key] for key in ("seconds", "restore_s", "bytes_written", "commit")}
    )
    log.info("%s from %s: back and loaded in %.1f s", model, name, seconds)
    return Row(model, "", name, "", facts, 0 if ok else 1)
