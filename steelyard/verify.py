"""verify: judge a copy; a verdict for every file, with its bad ranges. Changes nothing but our own record of what was proven when."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from steelyard.batches import batches
from steelyard.copies.base import Copy, Finding, Look
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.errors import BadRecord, Missing, OtherSide, Refused, SteelyardError, WrongType
from steelyard.localise import suspect_ranges
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.parity import held_parity, unusable
from steelyard.pieces import digest_source, on_piece_borders, piece_size
from steelyard.records import MANIFEST, PARITY
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

_CODE = {"ok": 0, "stray": 0}


def verify(site: Site, models: Sequence[str] = (), *, copy: str = "store", look: Look | None = None, run: Run = run_here) -> Report:
    """Judge *models* (none: all) in *copy* ("all": every copy; one that is absent is then skipped and said so)."""
    report = Report("verify")
    look = look or Look()
    names = list(site.copies) if copy == "all" else [site.copy(copy).name]
    chosen = site.config.chosen(list(models))
    for name in names:
        with report.collecting():
            try:
                site.copies[name].ready(write=False)
            except Refused as error:
                if copy != "all":
                    raise
                log.warning("%s is skipped: %s", name, error)
                report.rows += [
                    Row(model, "", name, "", {"verdict": "unverified", "skipped": True, "why": error.message}) for model in chosen
                ]
                continue
            except Missing:
                if name != "store":
                    raise
            for model in chosen:
                with report.collecting():
                    report.rows += judge_model(site, model, name, look, run)
            if name == "store":
                report.rows += _judge_info(site, chosen)
    if look.depth == "quick":
        report.extra["note"] = "quick: size, times and presence only; no byte was read, no verdict is better than the last proof"
    return report.close()


def judge_model(site: Site, model: str, copy: str, look: Look, run: Run) -> list[Row]:
    """Rows for one model in one copy: every locked file, and on a replica every older snapshot too."""
    locked = site.locked_model(model)
    if locked is None and copy in site.replicas and site.copies[copy].commits(model):
        log.warning("no lock vouches for %s: %s is judged by its own records", model, copy)
        return _judge_replica(site, model, None, site.copies[copy], look, run)
    if locked is None:
        hint = f"never downloaded; run: steelyard download {model}"
        return [
            Row(model, pattern, copy, "", {"verdict": "missing", "why": hint}, 1) for pattern in site.config.models[model].files or ("*",)
        ]
    if copy == "store":
        return _judge_store(site, model, locked, look, run)
    if copy == "hub-cache":
        return _judge_snapshot(site, site.hub_cache, site.manifest(model, locked.commit), locked, look, run)
    return _judge_replica(site, model, locked, site.copies[copy], look, run)


def _judge_store(site: Site, model: str, locked: LockedModel, look: Look, run: Run) -> list[Row]:
    rows: list[Row] = []
    finish_switch(site, model)
    try:
        site.store.manifest(model, locked.commit)
    except BadRecord as error:
        why = "the manifest is damaged; the files were judged by the lock's digests and it was written anew"
        rows.append(Row(model, "manifest.json", "store", str(error.facts["path"]), {"verdict": "corrupt", "why": why, "bad_ranges": []}, 1))
    manifest = site.manifest(model, locked.commit)
    unknown = [file for file in locked.files if manifest.get(file.path) is None]
    for batch in batches(unknown):
        found = run(judge_by_lock, site, model, locked, batch)
        rows += [finding_row(site.store, manifest, path, finding, locked.commit) for path, finding in found.items()]
    rows += _judge_snapshot(site, site.store, manifest, locked, look, run)
    return rows


def _judge_info(site: Site, models: Sequence[str]) -> list[Row]:
    """A row for each of *models* that the store holds, where model_info.json is not what all the manifests say; one look for all of them."""
    held = site.held_manifests()
    if not any(manifest.files for manifest in held) or site.store.model_info_holds(held):
        return []
    why = "it is not what the manifests say; nothing reads it as truth, and download writes it anew"
    facts = {"verdict": "stale", "why": why}
    path = site.store.model_info_path
    return [Row(one.model, path.name, "store", str(path), facts, 1) for one in held if one.model in models and one.files]


def finish_switch(site: Site, model: str) -> None:
    """An update that was killed at the moment of its switch is taken back or finished first: what is current is then one whole revision."""
    if (site.store.ours / "switch" / f"{model}.json").exists():
        with site.writing("store", [model], "verify"):
            return


def _judge_replica(site: Site, model: str, locked: LockedModel | None, copy: Copy, look: Look, run: Run) -> list[Row]:
    rows: list[Row] = []
    commits = copy.commits(model)
    for commit in commits:
        try:
            manifest = copy.manifest(model, commit)
        except BadRecord as error:
            facts = {"verdict": "corrupt", "why": error.message, "bad_ranges": [], "commit": commit}
            rows.append(Row(model, "manifest.json", copy.name, str(error.facts["path"]), facts, 1))
            manifest = site.manifest(model, commit)
        if manifest is not None:
            rows += _judge_snapshot(site, copy, manifest, locked if locked and commit == locked.commit else None, look, run)
            rows += _judge_records(copy, manifest)
            rows += _judge_parity(site, copy, manifest, look, run)
    if locked is not None and locked.commit not in commits:
        manifest = site.manifest(model, locked.commit)
        if not commits and isinstance(copy, MountReplica) and copy.has_some(manifest):
            # A first backup that was stopped, or a snapshot that lost its manifest: what is there is told as it is.
            why = f"the snapshot is not complete without it; run: steelyard backup {model} --to {copy.name}"
            facts = {"verdict": "missing", "why": why, "commit": locked.commit}
            rows.append(Row(model, MANIFEST, copy.name, copy.where(manifest, MANIFEST), facts, 1))
            return rows + _judge_snapshot(site, copy, manifest, locked, look, run)
        verdict = "stale" if commits else "missing"
        why = f"it holds {commits[-1][:8]}, {locked.commit[:8]} is current" if commits else "never backed up there"
        facts = {"verdict": verdict, "why": f"{why}; run: steelyard backup {model} --to {copy.name}", "commit": locked.commit}
        rows += [Row(model, file.path, copy.name, "", facts, 1) for file in locked.files]
    if any(row.exit_code for row in rows):
        _still_there(copy)
    return rows


def _still_there(copy: Copy) -> None:
    """A drive that goes while it is looked at has no files: what is missing then is the drive. :raises MountAbsent:"""
    if isinstance(copy, FolderCopy):
        copy.ready(write=False)


def _judge_snapshot(site: Site, copy: Copy, manifest: Manifest, locked: LockedModel | None, look: Look, run: Run) -> list[Row]:
    rows: list[Row] = []
    for batch in batches(manifest.files):
        found = run(judge_files, site, copy.name, manifest, batch, look)
        for entry in batch:
            finding = found[entry.path]
            agreed = locked.get(entry.path) if locked else None
            if agreed is not None and (agreed.size_bytes != entry.size_bytes or (agreed.sha256 and agreed.sha256 != entry.sha256)):
                finding = Finding("corrupt", ((0, entry.size_bytes),), "lock", "this copy's manifest contradicts the lock")
            rows.append(finding_row(copy, manifest, entry.path, finding, manifest.commit))
    # Where our own manifest was lost, the lock records its files still.
    strays = [path for path in copy.strays(manifest) if locked is None or locked.get(path) is None]
    rows += [Row(manifest.model, path, copy.name, "", {"verdict": "stray", "why": "nothing records it"}, 0) for path in strays]
    return rows


def _judge_records(copy: Copy, manifest: Manifest) -> list[Row]:
    """What a person restores by without us: a bad SHA256SUMS would call good files bad, or bad ones good."""
    rows = []
    for name, why in copy.spoilt_records(manifest).items() if isinstance(copy, MountReplica) else ():
        path = copy.where(manifest, name)
        there = os.path.lexists(path)
        facts: dict[str, object] = {"verdict": "corrupt" if there else "missing", "commit": manifest.commit}
        facts |= {"why": f"{why}; run: steelyard repair {manifest.model} --copy {copy.name}"} | ({"bad_ranges": []} if there else {})
        rows.append(Row(manifest.model, name, copy.name, path, facts, 1))
    return rows


def _judge_parity(site: Site, copy: Copy, manifest: Manifest, look: Look, run: Run) -> list[Row]:
    """The parity beside a snapshot is judged like its files; where the config asks for some and there is none, it is missing."""
    if (problem := unusable(copy, manifest)) is not None:
        facts = {"verdict": problem.verdict, "why": problem.why, "commit": manifest.commit, "role": "parity", "bad_ranges": []}
        return [Row(manifest.model, f"{PARITY}/{MANIFEST}", copy.name, copy.where(manifest, f"{PARITY}/{MANIFEST}"), facts, 1)]
    held = held_parity(copy, manifest)
    found = run(judge_files, site, copy.name, held, held.files, look) if held is not None else {}
    rows = [finding_row(copy, held, path, finding, held.commit) for path, finding in found.items()] if held is not None else []
    return [replace(row, facts={**row.facts, "role": "parity"}) for row in rows]


def finding_row(copy: Copy, manifest: Manifest, path: str, finding: Finding, commit: str) -> Row:
    """The row of CONTRACT.md for one verdict."""
    facts: dict[str, object] = {"verdict": finding.verdict, "proof": finding.proof, "commit": commit}
    if finding.verdict in {"corrupt", "unreadable"}:
        facts["bad_ranges"] = told_ranges(finding, manifest.get(path))
    if finding.why:
        facts["why"] = finding.why
    try:
        where = copy.where(manifest, path)
    except KeyError:
        where = ""
    return Row(manifest.model, path, copy.name, where, facts, OtherSide.exit_code if finding.waits else _CODE.get(finding.verdict, 1))


def told_ranges(finding: Finding, entry: FileEntry | None) -> list[list[int]]:
    """The bad ranges of CONTRACT.md, on the borders of pieces; of a file without a record, on those that it would have."""
    last = max((end for _, end in finding.bad_ranges), default=0)
    size, piece = (entry.size_bytes, entry.piece_bytes) if entry is not None else (last, piece_size(last))
    return [list(one) for one in on_piece_borders(finding.bad_ranges, size, piece)]


# --- steps


def judge_files(site: Site, copy: str, manifest: Manifest, entries: Sequence[FileEntry], look: Look) -> dict[str, Finding]:
    """A verdict on each of *entries* in *copy*; what read bytes (or a store's own checksum) is recorded."""
    where = site.copies[copy]
    found: dict[str, Finding] = {}
    for entry in entries:
        current_watch().check()
        last = site.history.latest(copy, manifest.model, manifest.commit, entry.path)
        finding = where.judge(manifest, entry, look, last.finding if last else None)
        if copy in site.replicas and finding.verdict in {"missing", "unreadable"}:
            _still_there(where)
        if copy == "hub-cache" and finding.ok and not site.hub_cache.holds_link(manifest, entry.path):
            finding = Finding(
                "missing", proof="presence", why="the bytes are there, but the snapshot's link to them is not", stat=finding.stat
            )
        if look.depth != "quick" and not finding.waits:
            site.history.record(copy, manifest.model, manifest.commit, entry.path, finding)
        log.log(
            logging.INFO if finding.ok else logging.WARNING,
            "%s · %s in %s: %s %s",
            manifest.model,
            entry.path,
            copy,
            finding.verdict,
            finding.why,
        )
        found[entry.path] = finding
    return found


def judge_by_lock(site: Site, model: str, locked: LockedModel, files: Sequence[LockedFile]) -> dict[str, Finding]:
    """Judge files of the store that no manifest knows, by the digest that the Hub published; those that hold get their pieces recorded."""
    found: dict[str, Finding] = {}
    manifest = site.manifest(model, locked.commit)
    before = manifest
    for file in files:
        current_watch().check()
        finding, entry = by_digest(site.store, model, file)
        if entry is not None:
            manifest = manifest.with_file(entry)
        site.history.record("store", model, locked.commit, file.path, finding)
        found[file.path] = finding
    if manifest is not before:
        try:
            site.store.seal(manifest)
        except SteelyardError as error:
            log.warning("the manifest can't be written: %s", error)
    return found


def by_digest(store: FolderCopy, model: str, file: LockedFile) -> tuple[Finding, FileEntry | None]:
    """Judge one file by its published digest alone: right or wrong as a whole."""
    path = store.path_of(Manifest(model, "", "", "", ()), file.path)
    whole = ((0, file.size_bytes),)
    how = "sha256 of the whole" if file.sha256 else "git sha1 of the whole"
    try:
        with LocalFile(path) as source:
            if source.size_bytes != file.size_bytes:
                return Finding("corrupt", whole, "size", f"it has {source.size_bytes} bytes, {file.size_bytes} are right"), None
            watch = current_watch()
            with watch.job(f"verify {file.path}", file.size_bytes) as job:
                digests = digest_source(source, stop=watch.stop, on_bytes=lambda n: watch.advance(job, n), git=not file.sha256)
            if (digests.sha256 if file.sha256 else digests.git_sha1) != file.etag:
                suspect = suspect_ranges(source, file.size_bytes)
                why = "it is not what the Hub published; no record says which bytes"
                if suspect != whole:
                    why = "it is not what the Hub published; the archive's own CRCs say where"
                return Finding("corrupt", suspect, how, why, file.size_bytes), None
    except Missing:
        return Finding("missing", proof="presence"), None
    except WrongType as error:
        return Finding("corrupt", whole, "presence", error.message), None
    except SteelyardError as error:
        if error.exit_code != 1:
            raise
        return Finding("unreadable", tuple(getattr(error, "ranges", ()) or whole), "sha256", error.message), None
    return Finding("ok", proof=how, bytes_read=file.size_bytes), FileEntry.of(file.path, digests, file.etag)
