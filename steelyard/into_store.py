"""One file, or many small ones, into the store: from proven bytes at hand where there are any, the rest from the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steelyard.copies.base import Finding, ProvenReader, Rotten
from steelyard.copies.folder import stat_of
from steelyard.copies.hub import HubFile
from steelyard.disk import errors_of, fsync_folder, publish, write_atomically
from steelyard.errors import OtherSide, Range, SteelyardError, Stopped, WrongType
from steelyard.fetch import Fetched, fetch, fetch_small
from steelyard.held import proven
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.lookahead import Ahead, Remembering, Seen, check_arrived, check_content
from steelyard.manifest import FileEntry, Manifest
from steelyard.nearest import Nearest
from steelyard.quarantine import set_aside
from steelyard.second import SecondCopy, second_copy
from steelyard.site import Site
from steelyard.source import ByteSource, LocalFile
from steelyard.staging import Partial, partial_paths
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Action = Literal["downloaded", "resumed", "unchanged", "adopted", "refused"]
SMALL_AT_ONCE = 8


@dataclass(frozen=True)
class Got:
    """A file that is in the store and proven. *bytes_reused* came from an older version of it that was at hand.

    *cached*: the hub cache got its own copy in the same pass.
    """

    entry: FileEntry
    action: Action
    bytes_fetched: int = 0
    bytes_reused: int = 0
    retries: int = 0
    sources: tuple[str, ...] = ()
    """The copies that the bytes came from, where they did not come from the Hub alone."""
    cached: bool = False
    seen: Seen | None = None
    """What its header tells, looked at before it got its name; None where it was not looked at, or is no weights file."""


def fetch_file(site: Site, model: str, locked: LockedModel, file: LockedFile, ahead: Ahead) -> Got:
    """One large file into the store: from local bytes that prove right where there are any, the rest from the Hub; published once proven.

    What looking *ahead* brought is not fetched again.
    :raises Untrusted, NotLoadable: when what its header tells, or its load check, forbids its name; it stays in staging. Errors of fetch() else.
    """
    manifest = site.manifest(model, locked.commit)
    path = site.store.path_of_model(model, file.path)
    with ExitStack() as stack:
        lines = site.lines(locked)
        for line in lines:
            stack.callback(line.close)
        entry = manifest.get(file.path) or proven(blob_of(site, locked, file), file)
        if entry is not None:
            try:
                return _from_pieces(site, manifest.with_file(entry), entry, locked, file, path, lines)
            except Rotten as error:
                # What refused to come is told by fetching it whole: with evidence where it is wrong, with the other side's reason else.
                log.warning("%s: %s; fetching all of it", file.path, error)
        near = Nearest.of(site, model, locked)
        brought = near.bring(file, lines) if near is not None else None
        if brought is not None:
            site.store.seal(site.manifest(model, locked.commit).with_file(brought.entry))
            _record_proof(site, model, locked.commit, {file.path: path}, "sha256, read back")
            return Got(brought.entry, "resumed" if brought.resumed else "downloaded", brought.bytes_fetched, sources=brought.sources)
        blob = blob_of(site, locked, file)
        if (second := second_copy(site, file, blob)) is not None:
            stack.enter_context(second)
        fetched = fetched_from_hub(site, file, path, lines, ahead, second)
        partial, journal = partial_paths(site.store.ours / "staging", file.path, file.etag)
        seen = check_arrived(site, model, file, partial, fetched.entry.sha256)
        # The manifest comes first: from the moment the file has its name, verify can judge it by piece.
        site.store.seal(site.manifest(model, locked.commit).with_file(fetched.entry))
        _make_way(site, path, fetched.entry)
        publish(partial, path)
        journal.unlink(missing_ok=True)
        _record_proof(site, model, locked.commit, {fetched.entry.path: path}, "sha256 on arrival")
        action: Action = "resumed" if fetched.resumed else "downloaded"
        cached = second is not None and _publish_second(site, model, locked, fetched.entry, second, blob)
        return Got(fetched.entry, action, fetched.bytes_fetched, fetched.bytes_reused, fetched.retries, cached=cached, seen=seen)


def _publish_second(site: Site, model: str, locked: LockedModel, entry: FileEntry, second: SecondCopy, blob: Path) -> bool:
    """The store is whole whatever becomes of this: what fails here is done again, and told, by share_views."""
    try:
        if not second.publish(blob):
            return False
        seen = blob.stat()
    except (SteelyardError, OSError) as error:
        log.warning("%s: the hub cache's copy is made anew: %s", entry.path, error)
        return False
    finding = Finding("ok", proof="sha256 on arrival", bytes_read=seen.st_size, stat=stat_of(seen))
    site.history.record_all("hub-cache", model, locked.commit, {entry.path: finding})
    return True


def blob_of(site: Site, locked: LockedModel, file: LockedFile) -> Path:
    """Where the hub cache has these bytes, if it has them; a link to a blob that repos share (Xet) is one too."""
    return site.hub_cache.repo_folder(locked.repo_id) / "blobs" / file.etag


def fetched_from_hub(
    site: Site, file: LockedFile, old: Path, lines: Sequence[Line], ahead: Ahead, second: SecondCopy | None = None, *, same: bool = False
) -> Fetched:
    """Bring *file* into staging, with what an older version at *old* has in common with it, by the Hub's own client where only that can.

    *same*: at *old* should be these very bytes, under another name.
    """
    from steelyard.delta import seed_from_file, seed_whole
    from steelyard.xet import fetch_by_library, only_by_library

    settings, ours = site.config.hub, site.store.ours
    # What may be saved is not worth waiting for: in bad weather the fetch itself does that.
    hub = HubFile(lambda: lines, file, patience_s=min(settings.patience, 5.0))
    from_older = seed_whole(old) if same else seed_from_file(old, Remembering(hub, ahead.kept), connections=settings.connections)

    def seed(partial: Partial) -> Sequence[Range]:
        seeded = from_older(partial)
        ahead.put(partial, second)
        return seeded

    try:
        fetched = fetch(
            lines,
            file,
            ours / "staging",
            ours / "quarantine",
            connections=settings.connections,
            patience_s=settings.patience,
            seed=seed,
            second=second,
        )
    except OtherSide as error:
        if not only_by_library(error, lines[0], file):
            raise
        log.warning("%s: %s; the Hub keeps it in Xet, so its own client is asked", file.path, error)
        if second is not None:
            second.give_up()
        return fetch_by_library(lines[0], file, ours / "staging", patience_s=settings.patience)
    came = fetched.bytes_fetched + hub.bytes_fetched + ahead.bytes_fetched
    return Fetched(fetched.entry, came, fetched.resumed, fetched.retries, fetched.bytes_reused)


def _from_pieces(
    site: Site, manifest: Manifest, entry: FileEntry, locked: LockedModel, file: LockedFile, path: Path, lines: Sequence[Line]
) -> Got:
    """Its pieces are known: take the good ones from the old file and the hub cache, and only the others from the Hub."""
    candidates: dict[str, ByteSource] = {}
    for name, where in (("store", path), ("hub-cache", blob_of(site, locked, file))):
        try:
            candidates[name] = LocalFile(where)
        except SteelyardError:
            continue
    hub = HubFile(lambda: lines, file, patience_s=site.config.hub.patience)
    reader = ProvenReader(entry, {**candidates, "hub": hub})
    try:
        brought = site.store.bring(manifest, entry, reader)
    finally:
        reader.close()
    site.store.seal(site.manifest(manifest.model, manifest.commit).with_file(entry))
    _record_proof(site, manifest.model, manifest.commit, {entry.path: path}, "pieces, read back")
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
        log.warning("%s was not what the lock says; it is kept in %s", path, kept.parent)


def _record_proof(site: Site, model: str, commit: str, paths: dict[str, Path], how: str) -> None:
    findings = {}
    for name, path in paths.items():
        seen = path.stat()
        findings[name] = Finding("ok", proof=how, bytes_read=seen.st_size, stat=stat_of(seen))
    site.history.record_all("store", model, commit, findings)


def fetch_small_files(site: Site, model: str, locked: LockedModel, files: Sequence[LockedFile]) -> list[Got]:
    """Small files, several at once, one request each; published when proven. The first error is raised after the others have ended.

    What the hub cache has is taken from there without a request.
    """
    lines = site.lines(locked)
    near = Nearest.of(site, model, locked)
    watch = current_watch()
    there: list[Got] = []
    error: SteelyardError | None = None
    total = sum(file.size_bytes for file in files)

    def one(file: LockedFile) -> Got:
        watch.check()
        path = site.store.path_of_model(model, file.path)
        blob = blob_of(site, locked, file)
        entry = proven(blob, file) if blob.exists() else None
        content, fetched, retries = b"", 0, 0
        sources: tuple[str, ...] = ()
        if entry is not None:
            content = blob.read_bytes()
        elif near is not None and (found := near.small(file)) is not None:
            entry, content, fetched, sources = found.entry, found.content, len(found.content), found.sources
        else:
            content, digests, retries = fetch_small(lines, file, patience_s=site.config.hub.patience)
            entry, fetched = FileEntry.of(file.path, digests, file.etag), len(content)
        seen = check_content(site, model, file, content, entry.sha256)
        _make_way(site, path, entry)
        with errors_of(path):
            write_atomically(path, content, fsync_parent=False)
        job.retries += retries
        watch.advance(job, len(content))
        return Got(entry, "downloaded" if fetched or not content else "adopted", fetched, retries=retries, sources=sources, seen=seen)

    try:
        with watch.job(f"download {len(files)} small files", total) as job, ThreadPoolExecutor(SMALL_AT_ONCE) as executor:
            futures = [executor.submit(one, file) for file in files]
            try:
                for future in futures:
                    try:
                        there.append(future.result())
                    except Stopped:
                        raise
                    except SteelyardError as problem:
                        error = error or problem
            except BaseException:
                # What has not begun will not: a stop is seen within one file.
                executor.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for line in lines:
            line.close()
        # What has arrived is kept and known, whatever came after it.
        for folder in {site.store.path_of_model(model, got.entry.path).parent for got in there}:
            fsync_folder(folder)
        manifest = site.manifest(model, locked.commit).with_files(got.entry for got in there)
        site.store.seal(manifest)
        paths = {got.entry.path: site.store.path_of(manifest, got.entry.path) for got in there}
        _record_proof(site, model, locked.commit, paths, "digest on arrival")
    if error is not None:
        raise error
    return there
