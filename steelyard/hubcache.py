"""The hub cache in huggingface_hub's own layout: blobs, snapshots, refs. Programs that ask the library find the file without the network."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from steelyard.abilities import reflink
from steelyard.config import Config, Views
from steelyard.copies.base import Brought, CopyKind, ProvenReader, corrupt
from steelyard.copies.folder import FolderCopy
from steelyard.disk import device_of, errors_of, fsync_folder, make_folder, probe_write, publish, read_regular, write_atomically
from steelyard.errors import Refused
from steelyard.fstab import refuse_bare
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import OURS, confine
from steelyard.pieces import in_threads
from steelyard.source import read_at
from steelyard.watch import current_watch

SMALL_AT_ONCE = 8


class HubCache(FolderCopy):
    """hf_home/hub. Staging lies in hf_home/.steelyard, outside the folder that the library scans."""

    name = "hub-cache"
    kind: CopyKind = "hub-cache"

    def __init__(self, config: Config) -> None:
        self.root = config.store.hub_cache
        self.ours = config.store.hf_home / ".steelyard"
        self.views: Views = config.store.views

    def ready(self, *, write: bool) -> None:
        if write:
            refuse_bare(self.root)
            make_folder(self.root)
            probe_write(self.root)
            make_folder(self.ours)

    def repo_folder(self, repo_id: str) -> Path:
        return self.root / ("models--" + repo_id.replace("/", "--"))

    def path_of(self, manifest: Manifest, path: str) -> Path:
        """The blob, not the link to it: what is judged and mended is the bytes."""
        entry = manifest[path]
        return confine(self.repo_folder(manifest.repo_id) / "blobs", entry.etag)

    def folder_below(self, manifest: Manifest, folder: str) -> Path:
        return self.repo_folder(manifest.repo_id) / "blobs"

    def link_of(self, manifest: Manifest, path: str) -> Path:
        return confine(self.repo_folder(manifest.repo_id) / "snapshots" / manifest.commit, path)

    def where(self, manifest: Manifest, path: str) -> str:
        return str(self.link_of(manifest, path))

    def commits(self, model: str) -> list[str]:
        return []

    def manifest(self, model: str, commit: str) -> Manifest | None:
        return None

    def seal(self, manifest: Manifest) -> None:
        """Write the ref of the revision, so that the library resolves it without the network."""
        if manifest.revision != manifest.commit:
            ref = confine(self.repo_folder(manifest.repo_id) / "refs", manifest.revision)
            if not ref.is_file() or read_regular(ref) != manifest.commit.encode():
                write_atomically(ref, manifest.commit.encode())
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            # bford.info/cachedir: backup tools skip a folder with this signature.
            write_atomically(tag, b"Signature: 8a477f597d28d172789f06886806bc55\n# The hub cache of huggingface_hub.\n")

    def holds_link(self, manifest: Manifest, path: str) -> bool:
        link, blob = self.link_of(manifest, path), self.path_of(manifest, path)
        try:
            return link.resolve(strict=True) == blob.resolve(strict=True)
        except OSError:
            return False

    def link(self, manifest: Manifest, path: str) -> None:
        """Point snapshots/<commit>/<path> at the blob, relatively, as the library does; replaced in one step."""
        self._links(manifest, [path])

    def link_all(self, manifest: Manifest, entries: Sequence[FileEntry]) -> None:
        self._links(manifest, [entry.path for entry in entries])

    def _links(self, manifest: Manifest, paths: Sequence[str]) -> None:
        changed: set[Path] = set()
        for path in paths:
            if self.holds_link(manifest, path):
                continue
            link, blob = self.link_of(manifest, path), self.path_of(manifest, path)
            make_folder(link.parent)
            with errors_of(link):
                fresh = link.with_name(f".{link.name[:200]}.{os.getpid()}.link")
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(os.path.relpath(blob, link.parent))
                os.replace(fresh, link)
            changed.add(link.parent)
        for folder in changed:
            fsync_folder(folder)

    def share(self, manifest: Manifest, entry: FileEntry, source: Path) -> str:
        """Make the blob from the store's proven file without copying bytes, where `views` asks for it. What was done, or "" when it must be copied.

        :raises Refused: when hardlink or reflink is asked for and the file system can't.
        """
        blob = self.path_of(manifest, entry.path)
        if self.views == "copy":
            return ""
        staged = make_folder(self.ours / "staging") / f"view-{entry.sha256[:20]}.partial"
        staged.unlink(missing_ok=True)
        how = ""
        if self.views in {"reflink", "auto"} and try_reflink(source, staged):
            how = "reflink"
        elif self.views == "hardlink" and try_hardlink(source, staged):
            how = "hardlink"
        if not how:
            if self.views == "auto":
                return ""
            raise self.cannot_share(source)
        self.set_blob_aside(blob, entry)
        publish(staged, blob)
        return how

    def set_blob_aside(self, blob: Path, entry: FileEntry) -> None:
        """A blob that is not what its name says is evidence; a link to one that repos share is just taken away."""
        if blob.is_symlink() or blob.exists():
            self._make_way(blob, entry, self.ours)

    def can_share(self, models: Path, way: Literal["reflink", "hardlink"]) -> bool:
        """Whether a file of the store at *models* could share its bytes with one here; found out by doing it with a small one."""
        if device_of(models) != device_of(self.root):
            return False
        probe = make_folder(models / OURS / "staging") / f"share-probe-{os.getpid()}"
        shared = make_folder(self.ours / "staging") / f"shared-probe-{os.getpid()}"
        try:
            write_atomically(probe, b"probe" * 1000)
            return (try_hardlink if way == "hardlink" else try_reflink)(probe, shared)
        finally:
            probe.unlink(missing_ok=True)
            shared.unlink(missing_ok=True)

    def cannot_share(self, source: Path) -> Refused:
        """What is said where `views` asks for what the file system can't."""
        hint = 'set views = "copy" (or "auto") in the config'
        return Refused(why=f"views = {self.views!r}, but {self.root} can't share bytes with {source} that way", hint=hint)

    def bring_small(self, manifest: Manifest, entries: Sequence[FileEntry], store: FolderCopy) -> None:
        """The blobs of small files, several at once: proven in memory, written, fsynced, renamed.

        :raises Corrupt: when the store's file is not what its manifest says.
        """
        staging = make_folder(self.ours / "staging")

        def one(entry: FileEntry) -> None:
            blob = self.path_of(manifest, entry.path)
            with store.open(manifest, entry) as source:
                content = read_at(source, 0, source.size_bytes)
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise corrupt(entry.path, [(0, entry.size_bytes)], "it changed in the store since it was proven")
            staged = staging / f"view-{entry.etag[:40]}"
            write_atomically(staged, content, fsync_parent=False)
            self.set_blob_aside(blob, entry)
            with errors_of(blob):
                blob.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged, blob)

        by_blob = {self.path_of(manifest, entry.path): entry for entry in entries}
        in_threads(one, list(by_blob.values()), threads=SMALL_AT_ONCE, stop=current_watch().stop)
        for folder in {blob.parent for blob in by_blob}:
            fsync_folder(folder)

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        brought = super().bring(manifest, entry, reader)
        self.link(manifest, entry.path)
        return brought


def try_reflink(source: Path, target: Path) -> bool:
    """Make *target* share the blocks of *source*; False where the file system can't."""
    if device_of(source) != device_of(target.parent):
        return False
    try:
        reflink(source, target)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL}:
            return False
        raise
    return True


def try_hardlink(source: Path, target: Path) -> bool:
    """Make *target* a second name of *source*; False where the file system can't."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            return False
        raise
    return True
