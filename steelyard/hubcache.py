"""The hub cache in huggingface_hub's own layout: blobs, snapshots, refs. Programs that ask the library find the file without the network."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from steelyard.config import Config, Views
from steelyard.copies.base import Brought, CopyKind, ProvenReader
from steelyard.copies.folder import FolderCopy
from steelyard.disk import device_of, errors_of, fsync_folder, make_folder, probe_write, publish, write_atomically
from steelyard.errors import Refused
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import confine

_FICLONE = 0x40049409


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
            make_folder(self.root)
            probe_write(self.root)
            make_folder(self.ours)

    def repo_folder(self, repo_id: str) -> Path:
        return self.root / ("models--" + repo_id.replace("/", "--"))

    def path_of(self, manifest: Manifest, path: str) -> Path:
        """The blob, not the link to it: what is judged and mended is the bytes."""
        entry = manifest[path]
        return confine(self.repo_folder(manifest.repo_id) / "blobs", entry.etag)

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
            if not ref.exists() or ref.read_text(encoding="utf-8") != manifest.commit:
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
        if self.holds_link(manifest, path):
            return
        link, blob = self.link_of(manifest, path), self.path_of(manifest, path)
        make_folder(link.parent)
        with errors_of(link):
            fresh = link.with_name(f".{link.name[:200]}.{os.getpid()}.link")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.relpath(blob, link.parent))
            os.replace(fresh, link)
            fsync_folder(link.parent)

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
        if self.views in {"reflink", "auto"} and _reflink(source, staged):
            how = "reflink"
        elif self.views == "hardlink" and _hardlink(source, staged):
            how = "hardlink"
        if not how:
            if self.views == "auto":
                return ""
            hint = 'set views = "copy" (or "auto") in the config'
            raise Refused(why=f"views = {self.views!r}, but {self.root} can't share bytes with {source} that way", hint=hint)
        publish(staged, blob)
        return how

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        brought = super().bring(manifest, entry, reader)
        self.link(manifest, entry.path)
        return brought


def _reflink(source: Path, target: Path) -> bool:
    import fcntl

    if device_of(source) != device_of(target.parent):
        return False
    try:
        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            os.fsync(new.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL}:
            return False
        raise
    return True


def _hardlink(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
            return False
        raise
    return True
