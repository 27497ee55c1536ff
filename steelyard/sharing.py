"""The hub cache as the store's second view: every file of a model resolvable by the library, sharing bytes as `views` says."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from steelyard.copies.base import Look, ProvenReader, Rotten, corrupt
from steelyard.fetch import SMALL_BYTES
from steelyard.lock import LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.site import Site
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
            reader = ProvenReader(entry, {"store": site.store.open(manifest, entry)})
            try:
                cache.bring(manifest, entry, reader)
            except Rotten as error:
                raise corrupt(entry.path, [error.where], "it changed in the store since it was proven") from error
            finally:
                reader.close()
    cache.bring_small(manifest, small, site.store)
    cache.link_all(manifest, entries)
    cache.seal(manifest)
