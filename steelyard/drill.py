"""drill: restore to scratch, verify, load, time it, clean up. A backup that was never restored is a hope."""

from __future__ import annotations

import contextlib
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.checkpoint import load_check
from steelyard.copies.base import Look, ProvenReader, Rotten, corrupt
from steelyard.disk import make_folder
from steelyard.errors import Missing, MountAbsent, NoSpace, SteelyardError
from steelyard.loading import Device, weights_files
from steelyard.manifest import Manifest
from steelyard.pieces import Arrival
from steelyard.report import Report, Row
from steelyard.restore import Folder, bring_files, candidates, errors_in, known_manifest
from steelyard.runlock import locked as locked_run
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

SLOWER = 2.0
"""A drill that takes this many times as long as the last ones usually did is told as slower."""


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
                    try:
                        report.rows.append(run(drill_model, site, model, name, device))
                    except SteelyardError as error:
                        if error.exit_code != 130:
                            facts = {"verdict": "failed", "why": error.message, "loaded": 0}
                            report.rows.append(Row(model, "", name, "", facts, error.exit_code))
                        raise
    return report.close()


def drill_model(site: Site, model: str, name: str, device: Device) -> Row:
    """Step: one model from one replica. Its row's *minutes* is the answer; the scratch folder is gone afterwards, whatever happens.

    Where scratch has no room for the model, every piece is read and proven and goes nowhere; the row says so, and nothing is loaded.
    """
    locked = site.locked_model(model)
    replica = site.replicas[name]
    commits = replica.commits(model)
    if not commits:
        raise Missing(path=f"{name}: {model}", hint=f"run: steelyard backup {model} --to {name}")
    commit = locked.commit if locked and locked.commit in commits else commits[-1]
    manifest, _ = known_manifest(site, model, commit, locked, {name: replica})
    before = _seconds_before(site, model, name)
    home = make_folder(site.store.ours / "drill")
    with locked_run(site.store.ours / "locks", f"drill {model}", "drill"):
        _sweep(home, model)
        started = time.monotonic()
        try:
            facts = _bring_back(site, manifest, name, device, home)
        except SteelyardError as error:
            site.history.event("drill", model, name, "failed", commit=commit, why=error.message)
            raise
    seconds = time.monotonic() - started
    facts |= {"minutes": round(seconds / 60, 2), "seconds": round(seconds, 2), "commit": commit, "size_bytes": manifest.size_bytes}
    usual = statistics.median(before) if before else None
    facts |= {"usual_seconds": usual, "slower": usual is not None and seconds > max(SLOWER * usual, usual + 5)}
    if facts["slower"]:
        log.warning("%s from %s took %.1f s, usually it takes %.1f s", model, name, seconds, usual)
    ok = facts["verdict"] == "ok"
    kept = ("seconds", "restore_s", "bytes_written", "commit", "way", "slower")
    site.history.event("drill", model, name, "ok" if ok else "failed", **{key: facts[key] for key in kept})
    log.info("%s from %s: %s in %.1f s", model, name, "back and loaded" if facts["loaded"] else "proven", seconds)
    return Row(model, "", name, "", facts, 0 if ok else 1)


def _bring_back(site: Site, manifest: Manifest, name: str, device: Device, home: Path) -> dict[str, object]:
    try:
        return _through_scratch(site, manifest, name, device, home)
    except NoSpace as error:
        log.warning("%s from %s: %s It is read piece by piece to nowhere instead", manifest.model, name, error.message)
        why = f"scratch is too small, so it was read and proven piece by piece, not loaded ({error.message})"
        return _to_nowhere(site, manifest, name) | {"why": why}


def _seconds_before(site: Site, model: str, name: str) -> list[float]:
    """How long the last good drills of this model from this replica took, through scratch."""
    found = [facts for _, copy, outcome, facts in site.history.events("drill", model, 100) if copy == name and outcome == "ok"]
    return [float(str(facts["seconds"])) for facts in found if facts.get("way", "scratch") == "scratch" and "seconds" in facts][:5]


def _sweep(home: Path, model: str) -> None:
    """Scratch folders of drills that were killed: we hold the lock, so nobody uses them."""
    for old in home.glob(f"{model}-*"):
        shutil.rmtree(old, ignore_errors=True)


def _through_scratch(site: Site, manifest: Manifest, name: str, device: Device, home: Path) -> dict[str, object]:
    """:raises NoSpace: before anything is written, or when another program takes the room meanwhile."""
    check_room([Need(home, manifest.size_bytes)])
    scratch = Path(tempfile.mkdtemp(prefix=f"{manifest.model}-", dir=home))
    started = time.monotonic()
    try:
        target = Folder(scratch)
        done = bring_files(site, manifest, False, manifest.files, target, [name], name)
        for error in errors_in(done):
            raise error
        restored_s = time.monotonic() - started
        bad = [entry.path for entry in manifest.files if not target.judge(manifest, entry, Look()).ok]
        settings, stop = site.config.models[manifest.model], current_watch().stop
        loaded = [
            load_check(target.path_of(manifest, entry.path), device, stop=stop, allow_globals=settings.allowed(entry.sha256))
            for entry in weights_files(manifest)
        ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    problem = next((found for found in loaded if found.verdict != "ok"), None)
    facts: dict[str, object] = {
        "verdict": "ok" if not bad and problem is None else "failed",
        "way": "scratch",
        "restore_s": round(restored_s, 2),
        "bytes_written": sum(one.bytes_written for one in done),
        "loaded": sum(found.verdict == "ok" for found in loaded),
    }
    if bad:
        facts["why"] = f"{bad[0]} did not come back whole"
    elif problem is not None:
        facts["why"] = f"it came back whole but does not load: {problem.verdict}"
    return facts


def _to_nowhere(site: Site, manifest: Manifest, name: str) -> dict[str, object]:
    """Read every piece, prove it and the SHA-256 of the whole, and keep nothing. :raises Corrupt: :raises OtherSide:"""
    started = time.monotonic()
    watch = current_watch()
    for entry in manifest.files:
        sources = candidates(site, manifest, entry, [name], hub=False)
        if not sources:
            raise Missing(path=f"{name}: {entry.path}", hint=f"run: steelyard verify {manifest.model} --copy {name}")
        reader = ProvenReader(entry, sources)
        with watch.job(f"read {entry.path} from {name}", entry.size_bytes) as job, contextlib.closing(reader):
            arrival = Arrival(entry.size_bytes, ahead=2, piece_bytes=entry.piece_bytes)
            try:
                for index, (start, end) in enumerate(entry.ranges):
                    watch.check()
                    # A fresh buffer each time: SHA-256 still reads the last ones.
                    arrival.feed(reader.read_piece(index, memoryview(bytearray(end - start))))
                    watch.advance(job, end - start)
                sha256 = arrival.finish().sha256
            except Rotten as rotten:
                for error in rotten.errors:
                    if error.exit_code == 4:
                        raise error from rotten
                raise corrupt(f"{name}: {entry.path}", [rotten.where], "it is not what was agreed on") from rotten
            finally:
                arrival.close()
        if sha256 != entry.sha256:
            raise corrupt(f"{name}: {entry.path}", [(0, entry.size_bytes)], "its pieces hold, but together they are not what was agreed on")
    return {"verdict": "ok", "way": "nowhere", "restore_s": round(time.monotonic() - started, 2), "bytes_written": 0, "loaded": 0}
