"""download: resolve, lock, check space, fetch, verify, publish into the store, and into the hub cache as its second view."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steelyard.config import Config
from steelyard.copies.base import Finding, Look, ProvenReader
from steelyard.copies.folder import stat_of
from steelyard.copies.hub import HubFile
from steelyard.disk import errors_of, gb, publish, write_atomically
from steelyard.errors import ConfigBroken, Missing, SteelyardError, WrongType
from steelyard.fetch import SMALL_BYTES, fetch, fetch_small
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source
from steelyard.quarantine import set_aside
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import ByteSource, LocalFile
from steelyard.space import Need, check_room
from steelyard.staging import partial_paths
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Action = Literal["downloaded", "resumed", "unchanged", "adopted", "refused"]
SMALL_AT_ONCE = 8


@dataclass(frozen=True)
class Got:
    """A file that is in the store and proven."""

    entry: FileEntry
    action: Action
    bytes_fetched: int = 0


def download(site: Site, models: Sequence[str] = (), *, run: Run = run_here) -> Report:
    """Bring every file of *models* (none: all) that the lock names into the store; agree on a lock first where there is none."""
    report = Report("download")
    for model in site.config.chosen(list(models)):
        with report.collecting():
            site.store.ready(write=True)
            with site.writing("store", [model], "download"):
                _download_model(site, model, report, run)
    return report.close()


def _download_model(site: Site, model: str, report: Report, run: Run) -> None:
    locked = run(agree_on, site, model)
    log.info("%s: %s at %s, %d files, %s", model, locked.repo_id, locked.commit[:8], len(locked.files), gb(locked.size_bytes))
    held = run(look_at_held, site, model, locked)
    todo = [file for file in locked.files if file.path not in held]
    try:
        run(check_plan, site, model, locked, todo)
    except SteelyardError as error:
        if error.exit_code == 3:
            report.rows += [_row(site, model, locked, file.path, "refused", file=file, exit_code=3) for file in todo]
        raise
    got: dict[str, Got] = {path: Got(entry, "unchanged") for path, entry in held.items()}
    small = [file for file in todo if file.size_bytes <= SMALL_BYTES]
    failed = False
    if small:
        try:
            got |= {one.entry.path: one for one in run(fetch_small_files, site, model, locked, small)}
        except SteelyardError as error:
            failed = True
            _keep(report, error)
    for file in todo:
        if file.path not in got and file not in small:
            try:
                got[file.path] = run(fetch_file, site, model, locked, file)
            except SteelyardError as error:
                failed = True
                _keep(report, error)
    manifest = run(share_views, site, model, locked, [got[path].entry for path in sorted(got)])
    for path in sorted(got):
        report.rows.append(_row(site, model, locked, path, got[path].action, got=got[path]))
    site.history.event(
        "download", model, "store", "failed" if failed else "ok", commit=locked.commit, bytes=sum(g.bytes_fetched for g in got.values())
    )
    log.info("%s: %d of %d files are in the store, proven", model, len(manifest.files), len(locked.files))


def _keep(report: Report, error: SteelyardError) -> None:
    if error.exit_code == 130:
        raise error
    report.errors.append(error)


def _row(
    site: Site,
    model: str,
    locked: LockedModel,
    path: str,
    action: Action,
    *,
    got: Got | None = None,
    file: LockedFile | None = None,
    exit_code: int = 0,
) -> Row:
    facts: dict[str, object] = {"action": action, "commit": locked.commit, "repo_id": locked.repo_id}
    if got is not None:
        facts |= {"sha256": got.entry.sha256, "size_bytes": got.entry.size_bytes, "bytes_fetched": got.bytes_fetched}
    elif file is not None:
        facts |= {"sha256": file.sha256 or None, "size_bytes": file.size_bytes, "bytes_fetched": 0}
    return Row(model, path, "store", str(site.store.path_of_model(model, path)), facts, exit_code)


# --- steps


def agree_on(site: Site, model: str) -> LockedModel:
    """What the lock holds of *model*; where it holds nothing, or lacks files that the config now asks for, ask the Hub and write it first.

    The commit of a locked model never changes here.
    """
    wanted = site.config.models[model]
    held = site.locked_model(model)
    if held is not None and _covers(held, wanted.files, wanted.revision):
        _check_no_overlap(site, model, held)
        return held
    listing = site.hub.listing(wanted.repo_id, held.commit if held else wanted.revision)
    files = {file.path: file for file in listing.matching(wanted.files)}
    if held is not None:
        # What was agreed on stays as it was agreed on, whatever the Hub says of that commit today.
        files |= {file.path: file for file in held.files if file.path in files}
    locked = LockedModel(
        wanted.repo_id,
        held.revision if held else wanted.revision,
        held.commit if held else listing.commit,
        tuple(sorted(files.values(), key=lambda file: file.path)),
        scan=listing.scan,
    )
    _check_no_overlap(site, model, locked)
    site.agree(model, locked)
    log.info("%s: agreed on %s at %s (%s)", model, locked.repo_id, locked.commit, site.lock_path.name)
    return locked


def _covers(held: LockedModel, patterns: tuple[str, ...] | None, revision: str) -> bool:
    import fnmatch

    if held.revision != revision:
        log.warning(
            "the config asks for revision %r, the lock holds %r: fetching what is locked (steelyard update moves it)",
            revision,
            held.revision,
        )
    if patterns is None:
        return True
    return all(any(fnmatch.fnmatchcase(file.path, one) for file in held.files) for one in patterns)


def _check_no_overlap(site: Site, model: str, locked: LockedModel) -> None:
    """Two models must not write the same file; patterns can only be compared once the names are known."""
    mine = {site.store.path_of_model(model, file.path): file.path for file in locked.files}
    if site.store.root / "model_info.json" in mine:
        raise ConfigBroken(
            path=str(site.path),
            key=f"models.{model}.dir",
            why="its repo has a model_info.json, which would be overwritten; give it a dir",
        )
    for other, held in site.lock().models.items():
        if other == model or other not in site.config.models:
            continue
        for file in held.files:
            path = site.store.path_of_model(other, file.path)
            if path in mine:
                raise ConfigBroken(
                    path=str(site.path), key=f"models.{model}.dir", why=f"models.{other} writes {path} too; give one of them another dir"
                )


def look_at_held(site: Site, model: str, locked: LockedModel) -> dict[str, FileEntry]:
    """The files that are in the store already and prove to be what the lock says, by every byte."""
    manifest = site.manifest(model, locked.commit)
    held = {}
    for file in locked.files:
        path = site.store.path_of_model(model, file.path)
        if not path.is_file():
            continue
        entry = manifest.get(file.path)
        if entry is None:
            entry = _prove(path, file)
        else:
            finding = site.store.judge(manifest, entry, Look())
            site.history.record("store", model, locked.commit, file.path, finding)
            if not finding.ok:
                log.warning("%s: %s is %s; it will be mended", model, file.path, finding.verdict)
                entry = None
        if entry is not None:
            held[file.path] = entry
    return held


def _prove(path: Path, file: LockedFile) -> FileEntry | None:
    """The entry of a file that lies about, when its bytes are what the Hub published."""
    try:
        with LocalFile(path) as source:
            if source.size_bytes != file.size_bytes:
                return None
            watch = current_watch()
            with watch.job(f"prove {file.path}", file.size_bytes) as job:
                digests = digest_source(source, stop=watch.stop, on_bytes=lambda count: watch.advance(job, count), git=not file.sha256)
    except (Missing, WrongType):
        return None
    if (digests.sha256 if file.sha256 else digests.git_sha1) != file.etag:
        return None
    return FileEntry.of(file.path, digests, file.etag)


def check_plan(site: Site, model: str, locked: LockedModel, todo: Sequence[LockedFile]) -> None:
    """Price the plan on every file system it touches. :raises NoSpace: before the first byte."""
    config: Config = site.config
    staged = 0
    for file in todo:
        for path in partial_paths(site.store.ours / "staging", file.path, file.etag):
            if path.suffix == ".partial" and path.is_file():
                # Allocated already: those bytes are not needed again.
                staged += path.stat().st_blocks * 512
    size = sum(file.size_bytes for file in todo)
    needs = [Need(site.store.root, max(0, size - staged), config.store.min_free)]
    if config.store.views in {"copy", "auto"}:
        cached = sum(file.size_bytes for file in todo if not _blob(site, locked, file).exists())
        needs.append(Need(site.hub_cache.root, cached, config.store.min_free if size else 0))
    check_room(needs)


def _blob(site: Site, locked: LockedModel, file: LockedFile) -> Path:
    return site.hub_cache.repo_folder(locked.repo_id) / "blobs" / file.etag


def fetch_file(site: Site, model: str, locked: LockedModel, file: LockedFile) -> Got:
    """One large file into the store: from local bytes that prove right where there are any, the rest from the Hub; published once proven."""
    manifest = site.manifest(model, locked.commit)
    path = site.store.path_of_model(model, file.path)
    entry = manifest.get(file.path) or _prove(_blob(site, locked, file), file)
    if entry is not None:
        return _from_pieces(site, manifest.with_file(entry), entry, locked, file, path)
    settings = site.config.hub
    ours = site.store.ours
    lines = site.lines(locked)
    try:
        fetched = fetch(lines, file, ours / "staging", ours / "quarantine", connections=settings.connections, patience_s=settings.patience)
    finally:
        for line in lines:
            line.close()
    entry = fetched.entry
    # The manifest comes first: from the moment the file has its name, verify can judge it by piece.
    site.store.seal(site.manifest(model, locked.commit).with_file(entry))
    partial, journal = partial_paths(ours / "staging", file.path, file.etag)
    _make_way(site, path, entry)
    publish(partial, path)
    journal.unlink(missing_ok=True)
    _record_proof(site, model, locked.commit, entry, path, "sha256 on arrival")
    return Got(entry, "resumed" if fetched.resumed else "downloaded", fetched.bytes_fetched)


def _from_pieces(site: Site, manifest: Manifest, entry: FileEntry, locked: LockedModel, file: LockedFile, path: Path) -> Got:
    """Its pieces are known: take the good ones from the old file and the hub cache, and only the others from the Hub."""
    candidates: dict[str, ByteSource] = {}
    for name, where in (("store", path), ("hub-cache", _blob(site, locked, file))):
        try:
            candidates[name] = LocalFile(where)
        except SteelyardError:
            continue
    lines = site.lines(locked)
    hub = HubFile(lambda: lines, file, patience_s=site.config.hub.patience)
    reader = ProvenReader(entry, {**candidates, "hub": hub})
    try:
        brought = site.store.bring(manifest, entry, reader)
    finally:
        reader.close()
        for line in lines:
            line.close()
    site.store.seal(site.manifest(manifest.model, manifest.commit).with_file(entry))
    _record_proof(site, manifest.model, manifest.commit, entry, path, "pieces, read back")
    if not hub.bytes_fetched:
        return Got(entry, "adopted")
    return Got(entry, "resumed" if candidates or brought.action == "resumed" else "downloaded", hub.bytes_fetched)


def _make_way(site: Site, path: Path, entry: FileEntry) -> None:
    if path.is_symlink():
        return
    if path.is_dir():
        raise WrongType(path=str(path), hint="a folder stands where the file belongs; move it away")
    if path.exists():
        kept = set_aside(site.store.ours / "quarantine", path, f"replaced by {entry.sha256}")
        log.warning("%s was not what the Hub published; it is kept in %s", path, kept.parent)


def _record_proof(site: Site, model: str, commit: str, entry: FileEntry, path: Path, how: str) -> None:
    site.history.record(
        "store", model, commit, entry.path, Finding("ok", proof=how, bytes_read=entry.size_bytes, stat=stat_of(path.stat()))
    )


def fetch_small_files(site: Site, model: str, locked: LockedModel, files: Sequence[LockedFile]) -> list[Got]:
    """Small files, several at once, one request each; published when proven. The first error is raised after the others have ended."""
    lines = site.lines(locked)
    watch = current_watch()
    entries: list[Got] = []
    error: SteelyardError | None = None
    total = sum(file.size_bytes for file in files)

    def one(file: LockedFile) -> Got:
        watch.check()
        path = site.store.path_of_model(model, file.path)
        content, digests, _ = fetch_small(lines, file, patience_s=site.config.hub.patience)
        entry = FileEntry.of(file.path, digests, file.etag)
        _make_way(site, path, entry)
        with errors_of(path):
            write_atomically(path, content)
        watch.advance(job, len(content))
        return Got(entry, "downloaded", len(content))

    with watch.job(f"download {len(files)} small files", total) as job, ThreadPoolExecutor(SMALL_AT_ONCE) as executor:
        for future in [executor.submit(one, file) for file in files]:
            try:
                entries.append(future.result())
            except SteelyardError as problem:
                error = error or problem
            except BaseException:
                watch.stop.set()
                raise
    for line in lines:
        line.close()
    manifest = site.manifest(model, locked.commit)
    for got in entries:
        manifest = manifest.with_file(got.entry)
    site.store.seal(manifest)
    for got in entries:
        _record_proof(site, model, locked.commit, got.entry, site.store.path_of(manifest, got.entry.path), "digest on arrival")
    if error is not None:
        raise error
    return entries


def share_views(site: Site, model: str, locked: LockedModel, entries: Sequence[FileEntry]) -> Manifest:
    """Complete the manifest, make every file resolvable from the hub cache, and write model_info.json."""
    manifest = site.manifest(model, locked.commit)
    missing = [entry for entry in entries if manifest.get(entry.path) != entry]
    for entry in missing:
        manifest = manifest.with_file(entry)
    if missing:
        site.store.seal(manifest)
    cache = site.hub_cache
    cache.ready(write=True)
    for entry in manifest.files:
        if cache.holds_link(manifest, entry.path) and cache.judge(manifest, entry, Look()).ok:
            continue
        source = site.store.path_of(manifest, entry.path)
        blob = cache.path_of(manifest, entry.path)
        good = blob.is_file() and cache.judge(manifest, entry, Look()).ok
        if not good and not cache.share(manifest, entry, source):
            reader = ProvenReader(entry, {"store": site.store.open(manifest, entry)})
            try:
                cache.bring(manifest, entry, reader)
            finally:
                reader.close()
        cache.link(manifest, entry.path)
    if manifest.files:
        cache.seal(manifest)
    site.store.write_model_info(site.held_manifests())
    return manifest
