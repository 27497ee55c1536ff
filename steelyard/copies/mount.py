"""A replica on a drive that is mounted (or a plain folder): <path>/<model>/<commit>/<files as in the repo>, with its records beside them."""

from __future__ import annotations

import shlex
from pathlib import Path

from steelyard.config import MountConfig
from steelyard.copies.base import CopyKind
from steelyard.copies.folder import FolderCopy
from steelyard.disk import errors_of, make_folder, mount_at, probe_write, write_atomically
from steelyard.errors import BadRecord, MountAbsent, ReadOnly
from steelyard.hub import is_commit
from steelyard.manifest import Manifest
from steelyard.names import OURS, confine
from steelyard.records import MANIFEST, is_record, records
from steelyard.store import files_not_in


class MountReplica(FolderCopy):
    kind: CopyKind = "mount"
    cold_by_default = True

    def __init__(self, name: str, settings: MountConfig) -> None:
        self.name = name
        self.settings = settings
        self.root = settings.path
        self.ours = settings.path / OURS

    def ready(self, *, write: bool) -> None:
        """:raises MountAbsent: when the drive is not mounted at its mount point. :raises ReadOnly: when it takes no writes."""
        point = self.settings.mount_point
        if isinstance(point, Path):
            mount = mount_at(point)
            if mount is None:
                raise MountAbsent(why=f"{self.name}: nothing is mounted at {point}, so nothing was written", copy=self.name)
            if write and mount.read_only:
                hint = f"run: mount -o remount,rw {point} (if it fell to read-only by itself, look at dmesg first)"
                raise ReadOnly(place=f"{self.name} ({point})", why="it is mounted read-only", hint=hint)
            # What lies behind the path must really be on that mount, not on another file system below or beside it.
            if not self.root.resolve().is_relative_to(mount.point):
                raise MountAbsent(why=f"{self.name}: {self.root} leads outside of the mount at {point}", copy=self.name)
        if write:
            make_folder(self.root)
            probe_write(self.root)
            make_folder(self.ours)

    def folder_of(self, model: str, commit: str) -> Path:
        return confine(confine(self.root, model), commit)

    def path_of(self, manifest: Manifest, path: str) -> Path:
        return confine(self.folder_of(manifest.model, manifest.commit), path)

    def commits(self, model: str) -> list[str]:
        folder = confine(self.root, model)
        if not folder.is_dir():
            return []
        found = []
        for path in folder.iterdir():
            for name in (f"steelyard-{MANIFEST}", MANIFEST):
                if is_commit(path.name) and (path / name).is_file():
                    found.append(((path / name).stat().st_mtime_ns, path.name))
                    break
        return [commit for _, commit in sorted(found)]

    def manifest(self, model: str, commit: str) -> Manifest | None:
        folder = self.folder_of(model, commit)
        problem: BadRecord | None = None
        # A repo may have a manifest.json of its own; ours then has the longer name, and is looked for first.
        for name in (f"steelyard-{MANIFEST}", MANIFEST):
            path = folder / name
            try:
                manifest = Manifest.parse(path.read_bytes(), path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                problem = BadRecord(path=str(path), why=error.strerror or "it can't be read")
            except BadRecord as error:
                problem = error
            else:
                if (manifest.model, manifest.commit) == (model, commit):
                    return manifest
                problem = BadRecord(path=str(path), why="it is of another model or commit")
        if problem is not None:
            raise problem
        return None

    def seal(self, manifest: Manifest) -> None:
        folder = self.folder_of(manifest.model, manifest.commit)
        line = f"cp -r {shlex.quote(str(folder))} /where/you/want/it"
        for name, data in records(manifest, line, "/where/you/want/it").items():
            path = folder / name
            with errors_of(path):
                if not path.is_file() or path.read_bytes() != data:
                    write_atomically(path, data)

    def strays(self, manifest: Manifest) -> list[str]:
        folder = self.folder_of(manifest.model, manifest.commit)
        known = {entry.path for entry in manifest.files}
        return [path for path in files_not_in(folder, known) if not is_record(path)]
