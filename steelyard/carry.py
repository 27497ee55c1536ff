"""Carrying files from the store to a replica: what is read is proven, and a source that rotted stays where it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.copies.base import Brought, Copy, Finding, Look, ProvenReader, Rotten
from steelyard.copies.folder import FolderCopy
from steelyard.copies.small import AT_ONCE, SMALL_BYTES
from steelyard.errors import Missing, Range, SourceRotten, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import merge_ranges
from steelyard.site import Site

log = logging.getLogger("steelyard")


@dataclass(slots=True)
class Carried:
    """What became of one file: *error* is set where it was refused; *how* where the replica had the bytes under another name."""

    path: str
    action: str
    bytes_written: int = 0
    error: SteelyardError | None = None
    how: str = ""


def groups(replica: Copy, entries: Sequence[FileEntry]) -> list[Sequence[FileEntry]]:
    """Small files by the hundred where one sync does for all of them, or where several requests go at once; every other file by itself."""
    small = [entry for entry in entries if _goes_with_others(replica, entry)]
    together: list[Sequence[FileEntry]] = [small[at : at + AT_ONCE] for at in range(0, len(small), AT_ONCE)]
    return together + [[entry] for entry in entries if not _goes_with_others(replica, entry)]


def _goes_with_others(replica: Copy, entry: FileEntry) -> bool:
    if isinstance(replica, FolderCopy):
        return entry.size_bytes < SMALL_BYTES
    asked = getattr(replica, "goes_with_others", None)
    return asked is not None and bool(asked(entry))


def carry_group(site: Site, replica: Copy, manifest: Manifest, entries: Sequence[FileEntry]) -> list[Carried]:
    """Carry *entries* from the store to *replica*; a file whose source is missing or rotten is refused and does not stop the others."""
    done: list[Carried] = []
    readers: list[ProvenReader] = []
    try:
        for entry in entries:
            # Every piece of a file that grew, or of one behind a link, may be right: verify calls it bad all the same, and so does a backup.
            seen = site.store.judge(manifest, entry, Look("quick"))
            if seen.verdict == "corrupt":
                done.append(_told(site, manifest, entry, seen.bad_ranges, replica, seen))
                continue
            try:
                readers.append(ProvenReader(entry, {"store": site.store.open(manifest, entry)}))
            except SteelyardError as error:
                found = Finding("missing" if isinstance(error, Missing) else "unreadable", why=error.message)
                done.append(Carried(entry.path, "refused", error=rotten(site, manifest, entry, (), replica.name, found)))
        many = getattr(replica, "bring_many", None)
        brought = many(manifest, readers) if many and len(entries) > 1 else [_bring(replica, manifest, one) for one in readers]
    finally:
        for reader in readers:
            reader.close()
    for reader, became in zip(readers, brought, strict=True):
        entry = reader.entry
        if isinstance(became, Rotten):
            done.append(_refused(site, replica, manifest, entry, became))
        else:
            done.append(Carried(entry.path, became.action, became.bytes_written, how=became.how))
    return done


def _bring(replica: Copy, manifest: Manifest, reader: ProvenReader) -> Brought | Rotten:
    try:
        return replica.bring(manifest, reader.entry, reader)
    except Rotten as found:
        return found


def _refused(site: Site, replica: Copy, manifest: Manifest, entry: FileEntry, found: Rotten) -> Carried:
    """Look at the whole source file: the report names every bad range, not only the first that was met."""
    finding = site.store.judge(manifest, entry, Look())
    return _told(site, manifest, entry, merge_ranges([*finding.bad_ranges, found.where]), replica, finding)


def _told(site: Site, manifest: Manifest, entry: FileEntry, ranges: Sequence[Range], replica: Copy, finding: Finding) -> Carried:
    site.history.record("store", manifest.model, manifest.commit, entry.path, finding)
    log.error("%s · %s is %s in the store; nothing was carried to %s", manifest.model, entry.path, finding.verdict, replica.name)
    return Carried(entry.path, "refused", error=rotten(site, manifest, entry, ranges, replica.name, finding))


def rotten(site: Site, manifest: Manifest, entry: FileEntry, ranges: Sequence[Range], target: str, found: Finding) -> SteelyardError:
    """Why a file is not carried, from what was *found* in the store."""
    path = site.store.where(manifest, entry.path)
    hint = f"run: steelyard repair {manifest.model}"
    if found.verdict == "missing":
        return Missing(path=path, hint=f"nothing was carried to {target}; {hint}")
    shown = ", ".join(f"bytes {start:,} to {end:,}" for start, end in list(ranges)[:3]) or found.why or found.verdict
    return SourceRotten(path=path, why=shown, target=target, ranges=tuple(ranges), hint=hint)
