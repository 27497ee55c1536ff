"""Parity as a source of repair: what par2 gives back of a damaged file of a drive, computed when the first piece of it is asked for."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from steelyard import par2
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.disk import make_folder
from steelyard.errors import Corrupt, SteelyardError, Unreadable
from steelyard.manifest import FileEntry, Manifest
from steelyard.parity import ParitySet, plan_sets, scratch
from steelyard.pieces import MIB
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


def parity_source(site: Site, names: Sequence[str], manifest: Manifest, entry: FileEntry) -> ParitySource | None:
    """The parity that can give back pieces of *entry*: of the first of *names* that has some."""
    one = next((found for found in plan_sets(manifest) if entry in found.entries), None)
    for name in names if one is not None else ():
        replica = site.copies[name]
        if not isinstance(replica, MountReplica):
            continue
        try:
            held = replica.parity(manifest.model, manifest.commit)
        except (SteelyardError, OSError) as error:
            log.warning("%s: its parity can't be used: %s", name, error)
            continue
        if one is not None and held is not None and one.of(held):
            return ParitySource(site, replica, manifest, held, one, entry, [other for other in names if other != name])
    return None


class ParitySource:
    """A ByteSource over what par2 makes of a damaged file. Nothing is read or computed before the first piece is asked for.

    Whoever reads proves each piece; the replica's own file is only ever read.
    """

    remote = False

    def __init__(
        self, site: Site, replica: MountReplica, manifest: Manifest, held: Manifest, one: ParitySet, entry: FileEntry, others: Sequence[str]
    ) -> None:
        self._site, self._replica, self._manifest, self._held = site, replica, manifest, held
        self._set, self._entry, self._others = one, entry, others
        self._lock = threading.Lock()
        self._mended: LocalFile | None = None
        self._failed: SteelyardError | None = None
        self._ending = contextlib.ExitStack()

    @property
    def name(self) -> str:
        return f"parity of {self._replica.name}: {self._entry.path}"

    @property
    def size_bytes(self) -> int:
        return self._entry.size_bytes

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """:raises Corrupt: when the parity is not enough. :raises NoSpace, Missing: when it can't be used here."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._mended is None:
                try:
                    self._mended = self._mend()
                except SteelyardError as error:
                    log.warning("%s", error.message)
                    self._failed = error
                    raise
        return self._mended.readinto(offset, buffer)

    def _mend(self) -> LocalFile:
        log.info("%s is computed", self.name)
        need = self._set.size_bytes + sum(entry.size_bytes for entry in self._set.of(self._held))
        folder = self._ending.enter_context(scratch(self._site, self._replica, need, f"{self._replica.name}-{self._manifest.model}-use"))
        for entry in self._set.of(self._held):
            # Copied: where its volumes are links par2 finds none of them. One that can't be read is done without.
            with contextlib.suppress(OSError):
                shutil.copyfile(self._replica.path_of(self._held, entry.path), folder / Path(entry.path).name)
        for entry in self._set.entries:
            self._show(folder, entry, copied=False)
        archive = folder / Path(min(self._set.of(self._held), key=lambda one: (".vol" in one.path, one.path)).path).name
        if not archive.exists():
            archive = next(iter(sorted(folder.glob("*.vol*.par2"))), archive)
        others = self._other_files()
        whole, told = par2.repair(archive, others, size_bytes=self._set.size_bytes, label=self.name)
        if not whole and self._copy_what_can_be_read(folder):
            whole, told = par2.repair(archive, others, size_bytes=self._set.size_bytes, label=self.name)
        if not whole:
            why = f"the parity is not enough ({told})"
            raise Corrupt(path=self.name, why=why, ranges=((0, self._entry.size_bytes),))
        return LocalFile(folder / self._entry.path)

    def _show(self, folder: Path, entry: FileEntry, *, copied: bool) -> None:
        """Let par2 see a file of the replica: as a link, or *copied*, with zeros for what the medium does not give."""
        place = folder / entry.path
        make_folder(place.parent)
        path = self._replica.path_of(self._manifest, entry.path)
        place.unlink(missing_ok=True)
        if not copied:
            if path.is_file():
                place.symlink_to(path)
            return
        buffer = memoryview(bytearray(MIB))
        with LocalFile(path) as source, place.open("wb") as out:
            for at in range(0, source.size_bytes, MIB):
                current_watch().check()
                part = buffer[: min(MIB, source.size_bytes - at)]
                if not _read(source, at, part):
                    _read_finely(source, at, part)
                out.write(part)

    def _copy_what_can_be_read(self, folder: Path) -> bool:
        """Bad sectors end par2 where a copy with zeros in their place does not. False where every file can be read."""
        found = False
        for entry in self._set.entries:
            path = self._replica.path_of(self._manifest, entry.path)
            if path.is_file() and not _readable(path):
                self._show(folder, entry, copied=True)
                found = True
        return found

    def _other_files(self) -> list[Path]:
        """The same files in other folders: par2 takes good blocks from wherever it finds them."""
        found = []
        for name in self._others:
            copy = self._site.copies.get(name)
            for entry in self._set.entries if isinstance(copy, FolderCopy) else ():
                assert isinstance(copy, FolderCopy)
                path = copy.path_of(self._manifest, entry.path)
                if path.is_file():
                    found.append(path.resolve())
        return found

    def close(self) -> None:
        if self._mended is not None:
            self._mended.close()
            self._mended = None
        self._ending.close()


def _read(source: LocalFile, at: int, part: memoryview) -> bool:
    try:
        return source.readinto(at, part) == len(part)
    except Unreadable:
        return False


def _read_finely(source: LocalFile, at: int, part: memoryview) -> None:
    """A sector's worth at a time; zeros where there is none."""
    for start in range(0, len(part), 4096):
        one = part[start : start + 4096]
        if not _read(source, at + start, one):
            one[:] = bytes(len(one))


def _readable(path: Path) -> bool:
    buffer = memoryview(bytearray(MIB))
    with LocalFile(path) as source:
        return all(_read(source, at, buffer[: min(MIB, source.size_bytes - at)]) for at in range(0, source.size_bytes, MIB))
