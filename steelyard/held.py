"""What is there already: files that prove, by every byte, to be what the lock says."""

from __future__ import annotations

import logging
from pathlib import Path

from steelyard.copies.base import Finding, Look
from steelyard.errors import Missing, Unreadable, WrongType
from steelyard.fetch import is_right
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry
from steelyard.pieces import Digests, digest_source
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


def look_at_held(site: Site, model: str, locked: LockedModel) -> dict[str, FileEntry]:
    """The files that are in the store already and prove to be what the lock says, by every byte."""
    manifest = site.manifest(model, locked.commit)
    known = {entry.path: entry for entry in manifest.files}
    held: dict[str, FileEntry] = {}
    findings: dict[str, Finding] = {}
    for file in locked.files:
        current_watch().check()
        path = site.store.path_of_model(model, file.path)
        if not path.is_file():
            continue
        entry = known.get(file.path)
        if entry is None:
            entry = proven(path, file)
        else:
            finding = findings[file.path] = site.store.judge(manifest, entry, Look())
            if not finding.ok:
                log.warning("%s: %s is %s; it will be mended", model, file.path, finding.verdict)
                entry = None
        if entry is not None:
            held[file.path] = entry
    site.history.record_all("store", model, locked.commit, findings)
    return held


def proven(path: Path, file: LockedFile) -> FileEntry | None:
    """The entry of a file that lies about, when its bytes are what the Hub published; None when they are not, or can't be read."""
    digests = digests_of(path, file)
    return FileEntry.of(file.path, digests, file.etag) if digests is not None and is_right(file, digests) else None


def digests_of(path: Path, file: LockedFile) -> Digests | None:
    """The digests of the file at *path* when it has the size of *file*, read with progress; None else."""
    try:
        with LocalFile(path) as source:
            if source.size_bytes != file.size_bytes:
                return None
            watch = current_watch()
            with watch.job(f"prove {file.path}", file.size_bytes) as job:
                return digest_source(source, stop=watch.stop, on_bytes=lambda count: watch.advance(job, count), git=not file.sha256)
    except (Missing, WrongType, Unreadable):
        return None
