"""views: change later how the store and the hub cache share bytes. File by file, each proven before it takes a name; run again, it goes on."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steelyard.config import Views
from steelyard.config_edit import plan_edit
from steelyard.copies.base import Finding
from steelyard.copies.judging import by_pieces, stat_of
from steelyard.disk import device_of, errors_of, gb, make_folder, publish
from steelyard.errors import Corrupt, Missing, Refused, SteelyardError
from steelyard.extents import extents, overlap, own_bytes, share_bytes
from steelyard.hubcache import HubCache, try_hardlink, try_reflink
from steelyard.manifest import FileEntry, Manifest
from steelyard.report import Report, Row
from steelyard.sharing import BLOBS, copy_blob
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.space import Need, check_room
from steelyard.switch import held_folder, held_revisions
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Way = Literal["copy", "reflink", "hardlink"]
_DONE = {"copy": "copied", "reflink": "reflinked", "hardlink": "hardlinked"}


@dataclass(frozen=True)
class Pair:
    """A file in the store, *source*, and its *blob* in the hub cache."""

    manifest: Manifest
    entry: FileEntry
    source: Path
    blob: Path


def views(site: Site, kind: Views) -> Report:
    """Make every file that store and hub cache both hold share its bytes by *kind*, and write that into the config.

    :raises Refused: before anything is changed, where the file system can't. :raises NoSpace: where two copies have no room.
    """
    report = Report("views")
    edit = plan_edit(site.path, {"store.views": kind})
    cache, models = HubCache(edit.config), list(site.config.models)
    with report.collecting():
        site.store.ready(write=True)
        cache.ready(write=True)
        with site.writing("store", models, "views"), site.writing("hub-cache", models, "views"):
            pairs = list(_pairs(site, cache))
            way = _way(site, cache, kind, pairs)
            todo = [pair for pair in pairs if not _is_so(pair, way)]
            if way == "copy":
                needed = sum(pair.entry.size_bytes for pair in todo)
                check_room([Need(cache.root, needed, site.config.store.min_free if needed else 0)])
            # From here on new files are shared so; those that are held are changed one by one.
            edit.write()
            for pair in pairs:
                current_watch().check()
                with report.collecting():
                    report.rows.append(_change(site, cache, pair, way) if pair in todo else _row(cache, pair, "unchanged", 0, way))
            site.history.event("views", "", "hub-cache", "ok" if report.ok else "failed", kind=kind, was=site.config.store.views)
    freed = sum(int(row.facts["bytes_freed"]) for row in report.rows)
    report.extra |= {"views": kind, "bytes_freed": freed}
    report.extra["note"] = f'views = "{kind}" is in {site.path.name}' + (f"; {gb(freed)} freed" if freed else "")
    return report.close()


def _pairs(site: Site, cache: HubCache) -> Iterator[Pair]:
    """Current files, and those of older revisions that are held; a blob that several files of a repo share is there once."""
    seen: set[Path] = set()
    for model, locked in site.lock().models.items():
        if model not in site.config.models:
            continue
        places = [(locked.commit, None), *((one.commit, held_folder(site, model, one.commit)) for one in held_revisions(site, model))]
        for commit, kept in places:
            manifest = site.manifest(model, commit)
            for entry in manifest.files:
                source = site.store.path_of(manifest, entry.path) if kept is None else kept / entry.path
                blob = cache.path_of(manifest, entry.path)
                if blob not in seen and (kept is None or source.is_file()):
                    seen.add(blob)
                    yield Pair(manifest, entry, source, blob)


def _way(site: Site, cache: HubCache, kind: Views, pairs: list[Pair]) -> Way:
    """How bytes are shared from now on. :raises Refused: when the file systems can't."""
    if kind == "copy":
        return "copy"
    why = _why_not(site.store.ours, cache.ours, kind)
    strangers = [pair.source for pair in pairs if pair.source.exists() and device_of(pair.source) != device_of(cache.root)]
    if not why and strangers:
        why = f"{strangers[0]} lies on another file system than the hub cache"
    if kind == "auto":
        return "copy" if why else "reflink"
    if why:
        hint = 'use: steelyard views copy (or "auto": share where it can be done)'
        raise Refused(why=f"views = {kind!r} can't be had: {why}; nothing was changed", hint=hint)
    return kind


def _why_not(store: Path, cache: Path, kind: Views) -> str:
    """Tried with a small file; "" where it works."""
    if device_of(store) != device_of(cache):
        return "the store and the hub cache lie on different file systems"
    source, target = (
        make_folder(one / "staging") / f"views-probe-{secrets.token_hex(4)}{end}" for one, end in ((store, ""), (cache, ".to"))
    )
    with errors_of(store):
        try:
            source.write_bytes(b"probe" * 1000)
            if (try_hardlink if kind == "hardlink" else try_reflink)(source, target):
                return ""
        finally:
            source.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
    what = "hard links" if kind == "hardlink" else "reflinks (btrfs and xfs have them)"
    return f"the file system of {store.parent} has no {what}"


def _is_so(pair: Pair, way: Way) -> bool:
    """Whether the bytes are shared that way already; where the file system does not tell of a small file's blocks, that is believed."""
    if not pair.blob.is_file() or pair.blob.is_symlink() or not pair.source.is_file():
        return False
    same = pair.blob.samefile(pair.source)
    if way == "hardlink":
        return same
    if way == "copy":
        return not overlap(pair.source, pair.blob)
    unknown = pair.entry.size_bytes < 65_536 and extents(pair.blob) is None
    return not same and (unknown or share_bytes(pair.source, pair.blob))


def _change(site: Site, cache: HubCache, pair: Pair, way: Way) -> Row:
    """:raises Missing, Corrupt: when the store's file is not whole; what the cache holds is then left as it is."""
    manifest, entry = pair.manifest, pair.entry
    if not pair.source.is_file():
        raise Missing(path=str(pair.source), hint=f"the hub cache was left as it is; run: steelyard repair {manifest.model}")
    freed = _freed(pair.blob) if way != "copy" else 0
    if way == "copy":
        same = pair.blob.exists() and pair.blob.samefile(pair.source)
        with LocalFile(pair.source) as source, _told(pair):
            copy_blob(
                cache, manifest, entry, source, None if same or _holds(pair.blob, entry) else lambda old: cache.set_blob_aside(old, entry)
            )
    else:
        staged = make_folder(cache.ours / "staging") / f"view-{entry.sha256[:20]}.partial"
        with errors_of(staged):
            staged.unlink(missing_ok=True)
            if not (try_hardlink if way == "hardlink" else try_reflink)(pair.source.resolve(), staged):
                raise Refused(why=f"{pair.source} can't share its bytes with {cache.root}", hint="use: steelyard views copy")
        try:
            # What is judged is what takes the name: a source that changes now is judged changed.
            _prove(site, pair, staged)
            if not _holds(pair.blob, entry):
                cache.set_blob_aside(pair.blob, entry)
            publish(staged, pair.blob)
        finally:
            staged.unlink(missing_ok=True)
    cache.link(manifest, entry.path)
    stat = stat_of(pair.blob.stat())
    site.history.record(BLOBS, manifest.model, "", entry.etag, Finding("ok", proof="as it was left", stat=stat))
    site.history.record("hub-cache", manifest.model, manifest.commit, entry.path, Finding("ok", proof="pieces, when shared", stat=stat))
    _note_source(site, pair)
    log.info("%s · %s: %s, %s", manifest.model, entry.path, _DONE[way], f"{gb(freed)} freed" if way != "copy" else gb(entry.size_bytes))
    return _row(cache, pair, _DONE[way], freed if way != "copy" else entry.size_bytes, way)


def _prove(site: Site, pair: Pair, staged: Path) -> None:
    """:raises Corrupt: with the bad ranges; the finding is kept as one of the store."""
    with LocalFile(staged) as source:
        finding = by_pieces(source, pair.entry, cold=False)
    if not finding.ok:
        site.history.record("store", pair.manifest.model, pair.manifest.commit, pair.entry.path, finding)
        raise _rotten(pair, finding.bad_ranges)


def _rotten(pair: Pair, ranges: tuple[tuple[int, int], ...]) -> Corrupt:
    why = ", ".join(f"bytes {start:,} to {end:,}" for start, end in ranges[:3]) + "; the hub cache was left as it is"
    return Corrupt(path=str(pair.source), why=why, ranges=ranges, hint=f"run: steelyard repair {pair.manifest.model}, then this again")


class _told:
    """A piece that was bad while it was copied is told like any other rot of the store."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Corrupt):
            raise _rotten(self.pair, tuple(error.ranges)) from error


def _holds(blob: Path, entry: FileEntry) -> bool:
    """Whether the blob is a whole copy of the file: it may then be replaced, else it is evidence."""
    if blob.is_symlink() or not blob.exists():
        return True  # nothing of its own stands there
    try:
        with LocalFile(blob) as source:
            return by_pieces(source, entry, cold=False).ok
    except SteelyardError:
        return False


def _freed(blob: Path) -> int:
    try:
        seen = blob.lstat()
    except OSError:
        return 0
    return own_bytes(blob, min(seen.st_size, seen.st_blocks * 512)) if seen.st_nlink == 1 and not blob.is_symlink() else 0


def _note_source(site: Site, pair: Pair) -> None:
    """A new name changes the ctime of the store's file: what it was last proven to be, it still is."""
    model, commit, path = pair.manifest.model, pair.manifest.commit, pair.entry.path
    last = site.history.latest("store", model, commit, path)
    with suppress(OSError):
        stat = stat_of(pair.source.stat())
        if last is None or last.finding.stat != stat:
            site.history.record("store", model, commit, path, Finding("ok", proof="pieces, when shared", stat=stat))


def _row(cache: HubCache, pair: Pair, action: str, count: int, way: Way) -> Row:
    facts = {"action": action, "bytes": count, "bytes_freed": 0 if way == "copy" else count, "bytes_written": count if way == "copy" else 0}
    facts |= {"views": way, "commit": pair.manifest.commit, "sha256": pair.entry.sha256}
    return Row(pair.manifest.model, pair.entry.path, "hub-cache", str(cache.link_of(pair.manifest, pair.entry.path)), facts)
