"""The hub cache as the store's second view: every file of a model resolvable by the library, sharing bytes as `views` says."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from blake3 import blake3

from steelyard.copies.base import Finding, Look, corrupt
from steelyard.copies.folder import FolderCopy, stat_of
from steelyard.direct import aligned_buffer
from steelyard.fetch import SMALL_BYTES
from steelyard.hubcache import HubCache
from steelyard.lock import LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import default_threads, in_threads
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.staging import Partial
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

BLOBS = "blobs"
"""Under this name the history keeps how a blob lay when it was made or judged here: what is as it was then need not be read to be pointed at."""


def share_views(site: Site, model: str, locked: LockedModel, entries: Sequence[FileEntry], cached: Collection[str] = ()) -> Manifest:
    """Complete the manifest, make every one of *entries* (proven in the store just now) resolvable from the hub cache, and write model_info.json.

    What lies in the cache already stays when it proves right; what does not is set aside and made anew, never shared. *cached* are paths that
    got there in this run's own pass.
    :raises Refused: when `views` asks for what the file system can't. :raises NoSpace: the store is whole all the same.
    """
    manifest = site.manifest(model, locked.commit)
    missing = [entry for entry in entries if manifest.get(entry.path) != entry]
    if missing:
        manifest = manifest.with_files(missing)
        site.store.seal(manifest)
    try:
        wanted = {entry.path for entry in entries}
        if wanted:
            fill_cache(site, manifest, [entry for entry in manifest.files if entry.path in wanted], site.store, cached)
            site.hub_cache.seal(manifest)
    finally:
        site.write_model_info()
    return manifest


def point_cache(site: Site, manifest: Manifest) -> None:
    """Make the library resolve the manifest's revision to its commit."""
    ready_cache(site, manifest, manifest.files, site.store)
    site.hub_cache.seal(manifest)


def ready_cache(site: Site, manifest: Manifest, entries: Sequence[FileEntry], source: FolderCopy) -> None:
    """fill_cache(), where blobs that lie as they were left are not read again: they were proven then, and are again by the next verify of the cache."""
    fill_cache(site, manifest, [entry for entry in entries if not _as_left(site, manifest, entry, source)], source)
    site.hub_cache.link_all(manifest, entries)


def _as_left(site: Site, manifest: Manifest, entry: FileEntry, source: FolderCopy) -> bool:
    """Whether a blob is as it was left, or is the very file of *source* under another name: that one was judged."""
    known = site.history.latest(BLOBS, manifest.model, "", entry.etag)
    blob = site.hub_cache.path_of(manifest, entry.path)
    try:
        seen, own = blob.stat(), source.path_of(manifest, entry.path).stat()
        return (known is not None and known.finding.stat == stat_of(seen)) or os.path.samestat(seen, own)
    except OSError:
        return False


def fill_cache(site: Site, manifest: Manifest, entries: Sequence[FileEntry], source: FolderCopy, cached: Collection[str] = ()) -> None:
    """Make *entries*, proven as they lie in *source*, resolvable under the manifest's commit. Its revision is not pointed there yet (HubCache.seal)."""
    if not entries:
        return
    cache, watch = site.hub_cache, current_watch()
    cache.ready(write=True)
    small: list[FileEntry] = []
    for entry in entries:
        watch.check()
        blob = cache.path_of(manifest, entry.path)
        if blob.is_file() and (entry.path in cached or cache.judge(manifest, entry, Look()).ok):
            continue
        if blob.is_symlink() or blob.exists():
            log.warning("%s: what the hub cache had as %s is not that; it is set aside and made anew", entry.path, blob.name[:12])
        if entry.size_bytes <= SMALL_BYTES and cache.views in {"copy", "auto"}:
            small.append(entry)
        elif not cache.share(manifest, entry, source.path_of(manifest, entry.path)):
            with source.open(manifest, entry) as file:
                copy_blob(cache, manifest, entry, file, functools.partial(cache.set_blob_aside, entry=entry))
    cache.bring_small(manifest, small, source)
    cache.link_all(manifest, entries)
    left = {
        entry.etag: Finding("ok", proof="as it was left", stat=stat_of(cache.path_of(manifest, entry.path).stat())) for entry in entries
    }
    site.history.record_all(BLOBS, manifest.model, "", left)


def copy_blob(
    cache: HubCache, manifest: Manifest, entry: FileEntry, source: LocalFile, aside: Callable[[Path], None] | None = None
) -> None:
    """A second copy of the bytes, proven piece by piece as they are read, resumed where a killed run stopped. *aside*: what stands there goes first.

    Not read back from the medium, as a replica is: it lies on the drive of the store, and is proven by the next verify like the store itself.
    :raises Corrupt: when the store's file is no longer what it was proven to be.
    """
    watch, local = current_watch(), threading.local()
    with Partial(cache.ours / "staging", entry.path, entry.sha256, entry.size_bytes) as partial:
        have, ranges = partial.have(), entry.ranges
        todo = [index for index, (start, end) in enumerate(ranges) if not any(lo <= start and end <= hi for lo, hi in have)]
        with watch.job(f"{entry.path} → {cache.name}", entry.size_bytes) as job:
            watch.advance(job, entry.size_bytes - sum(ranges[index][1] - ranges[index][0] for index in todo))

            def one(index: int) -> None:
                start, end = ranges[index]
                if not hasattr(local, "buffer"):
                    local.buffer = aligned_buffer(min(entry.piece_bytes, entry.size_bytes))
                digest, view = blake3(), local.buffer[: end - start]
                for at in range(0, len(view), source.read_bytes):
                    part = view[at : at + source.read_bytes]
                    digest.update(part[: source.readinto(start + at, part)])
                if digest.hexdigest() != entry.pieces[index]:
                    raise corrupt(entry.path, [(start, end)], "it changed in the store since it was proven")
                partial.put(start, view)
                partial.start_writing(start, len(view))
                watch.advance(job, len(view))

            # A file that grows as it is written is written in order.
            in_threads(one, todo, threads=default_threads() if partial.reserved else 1, stop=watch.stop)
        partial.publish(cache.path_of(manifest, entry.path), aside=aside)
