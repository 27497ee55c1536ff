"""A copy in folders of a file system: the store, the hub cache and mounted replicas differ only in where a file lies."""

from __future__ import annotations

import logging
import stat as stat_bits
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steelyard.copies.base import Brought, CopyKind, Finding, Look, ProvenReader, Rotten
from steelyard.copies.judging import by_pieces, by_state, is_cached, past_the_cache, stat_of
from steelyard.copies.small import Staged, holds, make_last, publish_all, stage
from steelyard.copies.writing import fill, keep_times
from steelyard.direct import DIRECT_FROM_BYTES
from steelyard.disk import failure_domain
from steelyard.errors import Missing, Unreadable, UnsafeName, WrongType
from steelyard.manifest import FileEntry, Manifest
from steelyard.mending import RunningSha, mend_in_place
from steelyard.quarantine import set_aside
from steelyard.source import LocalFile
from steelyard.staging import Partial, reserved_bytes
from steelyard.states import State, states_of

__all__ = ["FolderCopy", "below", "stat_of"]

log = logging.getLogger("steelyard")


class FolderCopy(ABC):
    """Files below *root*; *ours* holds staging and quarantine and must lie on the same file system."""

    name: str
    kind: CopyKind
    root: Path
    ours: Path
    cold_by_default = False

    @abstractmethod
    def path_of(self, manifest: Manifest, path: str) -> Path:
        """Where a file lies or would lie. :raises UnsafeName:"""

    @abstractmethod
    def ready(self, *, write: bool) -> None:
        """:raises Refused: when it can't be used now."""

    def failure_domain(self) -> str:
        return failure_domain(self.root)

    def where(self, manifest: Manifest, path: str) -> str:
        return str(self.path_of(manifest, path))

    def open(self, manifest: Manifest, entry: FileEntry) -> LocalFile:
        source = LocalFile(self.path_of(manifest, entry.path))
        if source.size_bytes >= DIRECT_FROM_BYTES and not is_cached(source):
            past_the_cache(source)
        return source

    # --- judge

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        try:
            path = self._real_path(manifest, entry)
            source = LocalFile(path)
        except Missing:
            return Finding("missing", proof="presence")
        except (WrongType, UnsafeName) as error:
            return Finding("corrupt", ((0, entry.size_bytes),), "presence", error.message)
        except Unreadable as error:
            return Finding("unreadable", ((0, entry.size_bytes),), "open", str(error.facts.get("why")))
        with source:
            if look.depth == "quick":
                return by_state(source, entry, recorded)
            cold = self.cold_by_default if look.cold is None else look.cold
            return by_pieces(source, entry, cold=cold, threads=look.threads)

    def _real_path(self, manifest: Manifest, entry: FileEntry) -> Path:
        """The path of a file, where no link on it leads out of the root. :raises Missing, UnsafeName:"""
        path = self.path_of(manifest, entry.path)
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Missing(path=str(path)) from error
        except (OSError, RuntimeError) as error:
            raise Unreadable(path=str(path), why=str(error)) from error
        if not real.is_relative_to(self.root.resolve()):
            raise UnsafeName(name=entry.path, root=str(self.root), why=f"a link leads to {real}")
        return path

    def stats(self, manifest: Manifest, entries: Sequence[FileEntry]) -> dict[str, State]:
        """state_of each of *entries* by path; empty when one is not there as a regular file of its size. Cheap: one system call a file."""
        files = ((entry.path, entry.size_bytes) for entry in entries)
        try:
            return states_of(files, lambda folder: self.folder_below(manifest, folder))
        except (OSError, UnsafeName):
            return {}

    def folder_below(self, manifest: Manifest, folder: str) -> Path:
        """Where the files lie that a repo has in *folder* ("" for none). :raises UnsafeName:"""
        return self.path_of(manifest, f"{folder}/x" if folder else "x").parent

    def need_bytes(self, manifest: Manifest, entries: Sequence[FileEntry]) -> int:
        """The room that bringing *entries* takes, less what a killed run has reserved already."""
        staging = self.ours / "staging"
        return sum(max(0, entry.size_bytes - reserved_bytes(staging, entry.path, entry.sha256)) for entry in entries)

    # --- bring

    @contextmanager
    def held(self) -> Iterator[Path]:
        """The root to write below while the block runs. A drive's is a path that a remount can't turn elsewhere."""
        yield self.root

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        with self.held() as root:
            final = below(root, self.root, self.path_of(manifest, entry.path))
            ours = below(root, self.root, self.ours)
            if reader.pieces_are_trusted and self._is_there(manifest, entry, final):
                return Brought("unchanged", 0)
            if reader.pieces_are_trusted and (how := self._share(manifest, entry, final, root)):
                return Brought("copied", 0, how)
            with Partial(ours / "staging", entry.path, entry.sha256, entry.size_bytes) as partial:
                resumed = bool(partial.have())
                written = fill(partial, entry, reader, self.name)
                keep_times(partial.fileno(), reader)
                partial.publish(final, aside=lambda old: self._make_way(old, entry, ours))
            keep_times(final, reader)  # closing a file sets its time anew on some drivers in user space
        return Brought("resumed" if resumed else "copied", written)

    def bring_many(self, manifest: Manifest, readers: Sequence[ProvenReader]) -> list[Brought | Rotten]:
        """bring() for small files, with one sync for all of them; what became of each, in their order. A rotten one does not stop the others."""
        became: dict[str, Brought | Rotten] = {}
        with self.held() as root:
            ours = below(root, self.root, self.ours)
            staged: list[Staged] = []
            for number, reader in enumerate(readers):
                entry = reader.entry
                final = below(root, self.root, self.path_of(manifest, entry.path))
                if self._is_there(manifest, entry, final):
                    became[entry.path] = Brought("unchanged", 0)
                elif how := self._share(manifest, entry, final, root):
                    became[entry.path] = Brought("copied", 0, how)
                else:
                    try:
                        staged.append(stage(ours / "staging", number, reader, final))
                    except Rotten as rotten:
                        became[entry.path] = rotten
            if staged:
                make_last(ours / "staging", staged)
                whole = [one for one in staged if holds(one)]
                for one in whole:
                    became[one.entry.path] = Brought("copied", one.entry.size_bytes)
                    if one.final.exists() or one.final.is_symlink():
                        self._make_way(one.final, one.entry, ours)
                publish_all(ours / "staging", whole)
                for one in staged:
                    if one.entry.path not in became:
                        one.path.unlink()
        for reader in readers:
            if reader.entry.path not in became:
                # What did not come back from the medium is tried once more, and named if it fails again.
                try:
                    became[reader.entry.path] = self.bring(manifest, reader.entry, reader)
                except Rotten as rotten:
                    became[reader.entry.path] = rotten
        return [became[reader.entry.path] for reader in readers]

    def _share(self, manifest: Manifest, entry: FileEntry, final: Path, root: Path) -> str:
        """Publish content that the copy has under another name already instead of writing it again; how, or "" where that can't be done."""
        return ""

    def _is_there(self, manifest: Manifest, entry: FileEntry, final: Path) -> bool:
        """Whether the very content stands under the final name: it is then no evidence to be set aside, and nothing is to be written."""
        try:
            seen = final.lstat()
        except OSError:
            return False
        return stat_bits.S_ISREG(seen.st_mode) and seen.st_size == entry.size_bytes and self.judge(manifest, entry, Look()).ok

    def _make_way(self, old: Path, entry: FileEntry, ours: Path) -> None:
        """What stands where a proven file will go: a link is dropped, a file that is not the same content is evidence and kept."""
        if old.is_symlink():
            return
        if old.is_dir():
            raise WrongType(path=str(old), hint="a folder stands where a file belongs; move it away")
        set_aside(ours / "quarantine", old, f"replaced by {entry.sha256}")

    # --- mend

    def mend(self, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader, running: RunningSha | None = None) -> int:
        """As the protocol has it. *running* is the file's SHA-256 that was begun beside the judging, where the caller has one.

        A file whose bad bytes can't be written over (behind a second name, on a medium that fails there) is made anew beside it, from its own good
        pieces as far as *reader* has it among its candidates; the old one then goes to quarantine, and holds the bad sectors.
        """
        with self.held() as root:
            path = below(root, self.root, self.path_of(manifest, entry.path))
            if finding.verdict != "missing" and _mendable_in_place(path):
                try:
                    return mend_in_place(path, below(root, self.root, self.ours), entry, finding, reader, running)
                except Unreadable as error:
                    log.warning(
                        "%s can't be mended where it lies (%s): it is made anew", self.where(manifest, entry.path), error.facts.get("why")
                    )
            before = dict(reader.used_bytes)
            self.bring(manifest, entry, reader)
            return sum(used - before.get(name, 0) for name, used in reader.used_bytes.items() if name != self.name)

    @abstractmethod
    def commits(self, model: str) -> list[str]: ...

    @abstractmethod
    def manifest(self, model: str, commit: str) -> Manifest | None: ...

    @abstractmethod
    def seal(self, manifest: Manifest) -> None: ...

    def strays(self, manifest: Manifest) -> list[str]:
        return []


def below(held: Path, root: Path, path: Path) -> Path:
    """*path*, which lies below *root*, reached through *held* instead."""
    return path if held == root else held / path.relative_to(root)


def _mendable_in_place(path: Path) -> bool:
    """A regular file under one name only: bytes behind a second name are not ours to change."""
    try:
        seen = path.lstat()
    except OSError:
        return False
    return stat_bits.S_ISREG(seen.st_mode) and seen.st_nlink == 1
