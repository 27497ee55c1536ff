"""A replica on a drive that is mounted (or a plain folder): <path>/<model>/<commit>/<files as in the repo>, with its records beside them."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from steelyard.abilities import reflink
from steelyard.config import MountConfig
from steelyard.copies.base import CopyKind, Look
from steelyard.copies.drive import Drive
from steelyard.copies.folder import FolderCopy, below
from steelyard.copies.marker import Shelf
from steelyard.disk import errors_of, make_folder, probe_write, publish, read_regular, write_atomically
from steelyard.errors import BadRecord, Refused
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import OURS, confine
from steelyard.published import is_commit
from steelyard.records import BACK_TO, MANIFEST, PARITY, is_record, record_names, records, spoilt_records
from steelyard.staging import sweep_journals
from steelyard.states import State, state_of
from steelyard.store import files_not_in


class MountReplica(FolderCopy):
    """*shelf* knows the ids of the drives that were marked with `steelyard target`; None where nothing is remembered."""

    kind: CopyKind = "mount"
    cold_by_default = True

    def __init__(self, name: str, settings: MountConfig, shelf: Shelf | None = None) -> None:
        self.name = name
        self.settings = settings
        self.root = settings.path
        self.ours = settings.path / OURS
        self.drive = Drive(name, settings.path, settings.mount_point or None, shelf)
        self._older: dict[tuple[str, str], dict[tuple[str, int], tuple[Manifest, FileEntry]]] = {}

    def ready(self, *, write: bool, any_drive: bool = False) -> None:
        """:raises MountAbsent: when the drive is not mounted, or another one is. :raises ReadOnly: when it takes no writes.

        *any_drive*: also a drive that is not known yet. Reading from one is allowed, with a warning: what is read is proven anyway.
        """
        self.drive.check(write=write, any_drive=any_drive)
        if write:
            with self.drive.held_above() as root:
                make_folder(root)
                probe_write(root)
                make_folder(root / OURS)

    @contextmanager
    def held(self, *, any_drive: bool = False) -> Iterator[Path]:
        """As in FolderCopy; see Drive.held."""
        if not self.root.exists():
            with self.drive.held_above() as root:
                make_folder(root)
        with self.drive.held(any_drive=any_drive) as root:
            yield root

    def folder_of(self, model: str, commit: str) -> Path:
        return confine(confine(self.root, model), commit)

    def where(self, manifest: Manifest, path: str) -> str:
        return f"{self.root}/{manifest.model}/{manifest.commit}/{path}"

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
                manifest = Manifest.parse(read_regular(path), path)
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
        """As in base.Copy. What another host has in the same snapshot stays in its records. :raises Refused: when the two contradict each other."""
        folder = self.folder_of(manifest.model, manifest.commit)
        line = f"cp -r {shlex.quote(str(folder))} {BACK_TO}"
        with self.held() as root:
            manifest = self._with_what_is_there(manifest)
            for name, data in records(manifest, line, BACK_TO, self._parity_files(manifest) or ()).items():
                path = below(root, self.root, folder / name)
                with errors_of(path):
                    if not path.is_file() or path.read_bytes() != data:
                        write_atomically(path, data)
            sweep_journals(below(root, self.root, self.ours) / "staging")
        self._older.clear()

    def spoilt_records(self, manifest: Manifest) -> dict[str, str]:
        """Records for a person without this program that would mislead: name -> why. A damaged manifest is told by manifest()."""
        return spoilt_records(self.folder_of(manifest.model, manifest.commit), manifest, self._parity_files(manifest))

    def _with_what_is_there(self, manifest: Manifest) -> Manifest:
        try:
            held = self.manifest(manifest.model, manifest.commit)
        except BadRecord:
            return manifest
        if held is None:
            return manifest
        if held.repo_id != manifest.repo_id:
            raise Refused(
                why=f"{self.name}: {manifest.model} at {manifest.commit[:8]} is {held.repo_id} there", hint="give one of them another name"
            )
        ours = {entry.path for entry in manifest.files}
        for entry in held.files:
            if entry.path not in ours and self.judge(held, entry, Look("quick")).verdict != "missing":
                manifest = manifest.with_file(entry)
        # Two hosts proved the same bytes at different times: the record that is there stands.
        return held if held.files == manifest.files else manifest

    def stats(self, manifest: Manifest, entries: Sequence[FileEntry]) -> dict[str, State]:
        """As in FolderCopy, the snapshot's records included: one that lost them is not as it was."""
        found = super().stats(manifest, entries)
        folder = self.folder_of(manifest.model, manifest.commit)
        try:
            for name in record_names(manifest).values() if found else ():
                found[f"/{name}"] = state_of((folder / name).lstat())
        except OSError:
            return {}
        return found

    # --- parity beside a snapshot: files like any other, with a record of their own

    def parity(self, model: str, commit: str) -> Manifest | None:
        """What is recorded of a snapshot's parity; None where it has none. :raises BadRecord:"""
        path = self.folder_of(model, commit) / PARITY / MANIFEST
        try:
            held = Manifest.parse(read_regular(path), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BadRecord(path=str(path), why=error.strerror or "it can't be read") from error
        if (held.model, held.commit) != (model, commit) or any(not entry.path.startswith(f"{PARITY}/") for entry in held.files):
            raise BadRecord(path=str(path), why="it is of another snapshot")
        return held

    def seal_parity(self, held: Manifest) -> None:
        """Publish the record of a snapshot's parity, once its files are there."""
        path = self.folder_of(held.model, held.commit) / PARITY / MANIFEST
        with self.held() as root:
            write_atomically(below(root, self.root, path), held.dump())
        self._older.clear()

    def has_all(self, manifest: Manifest, entries: Sequence[FileEntry]) -> bool:
        """Whether each of *entries* is there as a regular file of its size."""
        return bool(FolderCopy.stats(self, manifest, entries))

    def has_some(self, manifest: Manifest) -> bool:
        """Whether any file of the snapshot is there, its records aside."""
        return any(self.path_of(manifest, entry.path).exists() for entry in manifest.files)

    def _parity_files(self, manifest: Manifest) -> list[str] | None:
        """The files to hand to par2; None where the record of them is damaged."""
        try:
            held = self.parity(manifest.model, manifest.commit)
        except BadRecord:
            return None
        return [entry.path for entry in held.files if ".vol" not in entry.path] if held is not None else []

    # --- what older snapshots have already

    def need_bytes(self, manifest: Manifest, entries: Sequence[FileEntry]) -> int:
        """As in FolderCopy; what an older snapshot shares takes no room."""
        return super().need_bytes(manifest, [entry for entry in entries if not self._same_content(manifest, entry)])

    def _share(self, manifest: Manifest, entry: FileEntry, final: Path, root: Path) -> str:
        """Link (or clone) a file of another snapshot with the same content, once it has been read back from the medium and found whole."""
        if entry.size_bytes == 0:
            return ""
        for held, one in self._same_content(manifest, entry):
            # By our own pieces: what a replica's manifest says of itself vouches for nothing.
            if one.piece_bytes != entry.piece_bytes or not self.judge(held, replace(entry, path=one.path), Look()).ok:
                continue
            old = below(root, self.root, self.path_of(held, one.path))
            ours = below(root, self.root, self.ours)
            staged = make_folder(ours / "staging") / f"view-{entry.sha256[:20]}.partial"
            with errors_of(final):
                staged.unlink(missing_ok=True)
                how = _link(old, staged)
                if not how:
                    return ""
                if final.exists() or final.is_symlink():
                    self._make_way(final, entry, ours)
                publish(staged, final)
            return how
        return ""

    def _same_content(self, manifest: Manifest, entry: FileEntry) -> list[tuple[Manifest, FileEntry]]:
        key = (manifest.model, manifest.commit)
        if key not in self._older:
            index: dict[tuple[str, int], tuple[Manifest, FileEntry]] = {}
            for commit in self.commits(manifest.model):
                with contextlib.suppress(BadRecord):
                    held = self.manifest(manifest.model, commit) if commit != manifest.commit else None
                    if held is not None:
                        index |= {(one.sha256, one.size_bytes): (held, one) for one in held.files}
                        if (parity := self.parity(manifest.model, commit)) is not None:
                            index |= {(one.sha256, one.size_bytes): (parity, one) for one in parity.files}
            self._older[key] = index
        found = self._older[key].get((entry.sha256, entry.size_bytes))
        return [found] if found else []

    def strays(self, manifest: Manifest) -> list[str]:
        folder = self.folder_of(manifest.model, manifest.commit)
        known = {entry.path for entry in manifest.files}
        try:
            held = self.parity(manifest.model, manifest.commit)
            ours = {f"{PARITY}/{MANIFEST}", *(entry.path for entry in held.files)} if held is not None else set[str]()
        except BadRecord:
            ours = {path for path in files_not_in(folder, known) if path.startswith(f"{PARITY}/") and path.endswith((".par2", MANIFEST))}
        return [path for path in files_not_in(folder, known | ours) if not is_record(path)]


def _link(old: Path, new: Path) -> str:
    """A second name for the same bytes: "hard link", else "reflink", else "" (FAT, exFAT, a limit of links)."""
    for how, make in (("hard link", os.link), ("reflink", reflink)):
        try:
            make(old, new)
        except OSError as error:
            if error.errno in {errno.EIO, errno.EROFS, errno.ENOSPC}:
                raise
            continue
        return how
    return ""
