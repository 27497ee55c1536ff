"""A download's bytes from the nearest copy that has them: `[hub] prefer_replicas`. A new machine then fills itself without asking the Hub twice.

A replica is believed only as far as the lock goes: its manifest says where pieces begin and what they should be, the agreed SHA-256 says
whether the whole is right. A piece that is bad there comes from the next replica, and from the Hub in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.config import S3Config
from steelyard.copies.base import Copy, ProvenReader, Rotten
from steelyard.copies.hub import HubFile
from steelyard.errors import Corrupt, OtherSide, SteelyardError
from steelyard.fetch import is_right
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import Arrival
from steelyard.site import Site
from steelyard.snapshots import known_manifest
from steelyard.source import ByteSource, read_at

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class Near:
    """A proven file that came from a replica: *content* for a small one, which the caller writes; a large one is in the store."""

    entry: FileEntry
    sources: tuple[str, ...]
    bytes_fetched: int = 0
    resumed: bool = False
    content: bytes = b""


@dataclass(frozen=True)
class Nearest:
    """The replicas that can be read now, nearest first (drives, then buckets), and the manifest to read them by."""

    site: Site
    manifest: Manifest
    replicas: dict[str, Copy]

    @classmethod
    def of(cls, site: Site, model: str, locked: LockedModel) -> Nearest | None:
        """None where the config does not ask for it, or no replica has the locked commit whole."""
        if not site.config.hub.prefer_replicas:
            return None
        there: dict[str, Copy] = {}
        for name in sorted(site.replicas, key=lambda name: isinstance(site.config.replicas[name], S3Config)):
            try:
                site.replicas[name].ready(write=False)
                there[name] = site.replicas[name]
            except SteelyardError as error:
                _unless_stopped(error)
                log.info("%s is passed over: %s", name, error)
        try:
            manifest, _ = known_manifest(site, model, locked.commit, locked, there)
        except SteelyardError as error:
            _unless_stopped(error)
            log.info("%s: no replica can give it: %s", model, error)
            return None
        return cls(site, manifest, there)

    def bring(self, file: LockedFile, lines: Sequence[Line]) -> Near | None:
        """Bring a large file into the store, piece by piece; None where that can't be done, and what has come stays staged for the Hub's part.

        :raises Refused, Stopped: what concerns the store itself.
        """
        entry = self._entry(file)
        sources = self._open(entry) if entry is not None else {}
        if entry is None or not sources:
            return None
        hub = HubFile(lambda: lines, file, patience_s=self.site.config.hub.patience)
        reader = ProvenReader(entry, {**sources, "hub": hub}, pieces_are_trusted=False)
        try:
            brought = self.site.store.bring(self.manifest, entry, reader)
        except (Rotten, Corrupt, OtherSide) as error:
            log.warning("%s: the replicas can't give it (%s); asking the Hub", file.path, error)
            return None
        finally:
            reader.close()
        used = tuple(sorted(reader.used_bytes, key=lambda name: -reader.used_bytes[name]))
        log.info("%s: %s", file.path, f"from {', '.join(used)}" if used else "whole already")
        return Near(entry, used, brought.bytes_written, brought.action == "resumed")

    def small(self, file: LockedFile) -> Near | None:
        """The content of a small file, proven by the lock; None where no replica has it right. Safe from several threads."""
        entry = self._entry(file)
        if entry is None:
            return None
        for name in self.replicas:
            source = self._opened(name, entry)
            if source is None:
                continue
            try:
                content = read_at(source, 0, file.size_bytes + 1)
            except SteelyardError as error:
                _unless_stopped(error)
                continue
            finally:
                source.close()
            arrival = Arrival(len(content), git=True)
            arrival.feed(content)
            digests = arrival.finish()
            if is_right(file, digests):
                return Near(FileEntry.of(file.path, digests, file.etag), (name,), content=content)
            log.warning("%s in %s is not what was agreed on", file.path, name)
        return None

    def source(self, file: LockedFile) -> ByteSource | None:
        """Its bytes as the nearest replica has them, unproven; None where none has it."""
        entry = self._entry(file)
        opened = (self._opened(name, entry) for name in self.replicas) if entry is not None else iter(())
        return next((source for source in opened if source is not None), None)

    def _entry(self, file: LockedFile) -> FileEntry | None:
        entry = self.manifest.get(file.path)
        return entry if entry is not None and entry.etag == file.etag and entry.size_bytes == file.size_bytes else None

    def _open(self, entry: FileEntry) -> dict[str, ByteSource]:
        found = {name: self._opened(name, entry) for name in self.replicas}
        return {name: source for name, source in found.items() if source is not None}

    def _opened(self, name: str, entry: FileEntry) -> ByteSource | None:
        try:
            return self.replicas[name].open(self.manifest, entry)
        except SteelyardError as error:
            _unless_stopped(error)
            log.debug("%s has no %s: %s", name, entry.path, error)
            return None


def _unless_stopped(error: SteelyardError) -> None:
    if error.exit_code == 130:
        raise error
