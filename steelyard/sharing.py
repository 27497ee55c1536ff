"""The hub cache as the store's second view: every file of a model resolvable by the library, sharing bytes as `views` says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from blake3 import blake3

from steelyard.copies.base import Look, corrupt
from steelyard.fetch import SMALL_BYTES
from steelyard.hubcache import HubCache
from steelyard.lock import LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import SUB_READ_BYTES, default_threads, in_threads
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.staging import Partial
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


def share_views(site: Site, model: str, locked: LockedModel, entries: Sequence[FileEntry]) -> Manifest:
    """Complete the manifest, make every one of *entries* (proven in the store just now) resolvable from the hub cache, and write model_info.json.

    What lies in the cache already stays when it proves right; what does not is set aside and made anew, never shared.
    :raises Refused: when `views` asks for what the file system can't. :raises NoSpace: the store is whole all the same.
    """
    manifest = site.manifest(model, locked.commit)
    missing = [entry for entry in entries if manifest.get(entry.path) != entry]
    if missing:
        manifest = manifest.with_files(missing)
        site.store.seal(manifest)
    try:
        wanted = {entry.path for entry in entries}
        _fill_cache(site, manifest, [entry for entry in manifest.files if entry.path in wanted])
    finally:
        site.write_model_info()
    return manifest


def _fill_cache(site: Site, manifest: Manifest, entries: Sequence[FileEntry]) -> None:
    if not entries:
        return
    cache, watch = site.hub_cache, current_watch()
    cache.ready(write=True)
    small: list[FileEntry] = []
    for entry in entries:
        watch.check()
        blob = cache.path_of(manifest, entry.path)
        if blob.is_file() and cache.judge(manifest, entry, Look()).ok:
            continue
        if blob.is_symlink() or blob.exists():
            log.warning("%s: what the hub cache had as %s is not that; it is set aside and made anew", entry.path, blob.name[:12])
        if entry.size_bytes <= SMALL_BYTES and cache.views in {"copy", "auto"}:
            small.append(entry)
        elif not cache.share(manifest, entry, site.store.path_of(manifest, entry.path)):
            with site.store.open(manifest, entry) as source:
                _copy(cache, manifest, entry, source)
    cache.bring_small(manifest, small, site.store)
    cache.link_all(manifest, entries)
    cache.seal(manifest)


def _copy(cache: HubCache, manifest: Manifest, entry: FileEntry, source: LocalFile) -> None:
    """A second copy of the bytes, proven piece by piece as they are read, resumed where a killed run stopped.

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
                    local.buffer = memoryview(bytearray(min(entry.piece_bytes, entry.size_bytes)))
                digest, view = blake3(), local.buffer[: end - start]
                for at in range(0, len(view), SUB_READ_BYTES):
                    part = view[at : at + SUB_READ_BYTES]
                    digest.update(part[: source.readinto(start + at, part)])
                if digest.hexdigest() != entry.pieces[index]:
                    raise corrupt(entry.path, [(start, end)], "it changed in the store since it was proven")
                partial.put(start, view)
                partial.start_writing(start, len(view))
                watch.advance(job, len(view))

            # A file that grows as it is written is written in order.
            in_threads(one, todo, threads=default_threads() if partial.reserved else 1, stop=watch.stop)
        partial.publish(cache.path_of(manifest, entry.path), aside=lambda blob: cache.set_blob_aside(blob, entry))
