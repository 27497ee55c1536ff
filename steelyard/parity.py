"""Parity beside a snapshot: what a lone drive heals itself with when no other copy is to be had.

    <snapshot>/steelyard-parity/<set>.par2, <set>.vol…par2      standard files of par2
    <snapshot>/steelyard-parity/manifest.json                   their own digests and pieces, sealed like any manifest

A file of 64 MiB or more is a set of its own, small ones share one. What par2 gives back is judged by the snapshot's manifest like any other source,
so parity that is wrong can mend nothing wrong.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from steelyard import par2
from steelyard.batches import ALONE_BYTES
from steelyard.carry import Carried
from steelyard.copies.base import Copy, Finding, Look, ProvenReader
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.disk import free_bytes, gb, make_folder
from steelyard.errors import BadRecord, NoSpace, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import slug
from steelyard.pieces import digest_source
from steelyard.records import PARITY
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

BLOCKS = 2000
"""Blocks of a large file. Each bad byte costs one at least, so 5 % mend a hundred places, or one hole of 5 %."""
MOST_BLOCKS = 32_768
"""The format's own limit."""
MOST_FILES = 10_000
LEAST_BLOCK_BYTES = 512


@dataclass(frozen=True)
class ParitySet:
    """Files of a snapshot that share their parity. *stem* names its content and not the percentage: what was made before is found by it."""

    stem: str
    entries: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    def block_bytes(self) -> int:
        """As large as BLOCKS of them cover it, smaller where files would fill theirs badly, and never so small that there are too many."""
        size = max(LEAST_BLOCK_BYTES, math.ceil(self.size_bytes / BLOCKS / 4) * 4)
        while size > LEAST_BLOCK_BYTES and self.blocks(size) * size > 1.1 * self.size_bytes and self.blocks(size // 8 * 4) <= MOST_BLOCKS:
            size = size // 8 * 4
        while self.blocks(size) > MOST_BLOCKS:
            size *= 2
        return max(size, 4)

    def blocks(self, block_bytes: int) -> int:
        return sum(-(-entry.size_bytes // block_bytes) for entry in self.entries)

    def recovery_blocks(self, percent: float) -> int:
        return max(1, math.ceil(self.blocks(self.block_bytes()) * percent / 100))

    def parity_bytes(self, percent: float) -> int:
        """About what it takes: the blocks, and the format's own packets."""
        return self.recovery_blocks(percent) * (self.block_bytes() + 200) + 64 * 1024

    def of(self, held: Manifest | None, percent: float | None = None) -> list[FileEntry]:
        """Its files among *held*; of any percentage where none is given."""
        prefix = f"{PARITY}/{self.stem}-" if percent is None else f"{PARITY}/{self.stem}-{percent:g}pct."
        return [entry for entry in held.files if entry.path.startswith(prefix)] if held is not None else []


def plan_sets(manifest: Manifest) -> list[ParitySet]:
    """The parity sets of a snapshot; empty files need none."""
    files = [entry for entry in manifest.files if entry.size_bytes]
    small = [entry for entry in files if entry.size_bytes < ALONE_BYTES]
    sets = [ParitySet(f"{slug(Path(one.path).name)[:40]}-{one.sha256[:12]}", (one,)) for one in files if one.size_bytes >= ALONE_BYTES]
    for at in range(0, len(small), MOST_FILES):
        part = tuple(small[at : at + MOST_FILES])
        name = blake3("\n".join(f"{one.path}\0{one.sha256}" for one in part).encode(errors="surrogatepass")).hexdigest()[:12]
        sets.append(ParitySet(f"{slug(Path(part[0].path).name)[:40]}-{name}" if len(part) == 1 else f"small-files-{name}", part))
    return sets


def wanted_percent(copy: Copy) -> float | None:
    return copy.settings.parity if isinstance(copy, MountReplica) else None


def held_parity(copy: Copy, manifest: Manifest) -> Manifest | None:
    """The record of a snapshot's parity. :raises BadRecord: when it is damaged."""
    return copy.parity(manifest.model, manifest.commit) if isinstance(copy, MountReplica) else None


def lacks_parity(copy: Copy, manifest: Manifest) -> bool:
    """Whether the config asks for parity that the snapshot does not have whole by its record and by sizes. Reads no weights."""
    percent = wanted_percent(copy)
    if percent is None or not isinstance(copy, MountReplica) or _name_is_taken(manifest):
        return False
    try:
        held = copy.parity(manifest.model, manifest.commit)
    except BadRecord:
        return True
    return any(not (found := one.of(held, percent)) or not copy.has_all(manifest, found) for one in plan_sets(manifest))


def _name_is_taken(manifest: Manifest) -> bool:
    return any(entry.path.partition("/")[0].casefold() == PARITY for entry in manifest.files)


# --- making it


def make_parity(site: Site, copy: str, manifest: Manifest, source: str) -> list[Carried]:
    """Step: make the parity that a snapshot lacks from the files in *source* (the store, or the replica itself), and bring it to the replica.

    It is written, read back from the medium and published like any file. :raises Missing: when par2 is not installed. :raises NoSpace:
    """
    replica = site.copies[copy]
    percent = wanted_percent(replica)
    if percent is None or not isinstance(replica, MountReplica):
        return []
    try:
        held = replica.parity(manifest.model, manifest.commit)
    except BadRecord as error:
        log.warning("%s; it is made anew", error.message)
        held = None
    record = held or Manifest(manifest.model, manifest.repo_id, manifest.revision, manifest.commit, ())
    done: list[Carried] = []
    for one in plan_sets(manifest):
        current_watch().check()
        known = one.of(record, percent)
        if known and replica.has_all(manifest, known) and _holds(replica, record, known):
            continue
        brought, entries = _from_older(replica, manifest, record, one, percent) or _made(
            site, replica, manifest, record, one, percent, source
        )
        done += brought
        record = record.with_files(entries)
    if done or held is None:
        replica.seal_parity(record)
        replica.seal(manifest)
    return done


def _holds(replica: MountReplica, record: Manifest, entries: Sequence[FileEntry]) -> bool:
    return all(replica.judge(record, entry, Look()).ok for entry in entries)


def _from_older(
    replica: MountReplica, manifest: Manifest, record: Manifest, one: ParitySet, percent: float
) -> tuple[list[Carried], list[FileEntry]] | None:
    """The same files lie in an older snapshot, and so does their parity: it is shared like them."""
    for commit in replica.commits(manifest.model):
        if commit == manifest.commit:
            continue
        try:
            held = replica.parity(manifest.model, commit)
        except BadRecord:
            continue
        entries = one.of(held, percent)
        if held is None or not entries or not _holds(replica, held, entries):
            continue
        return [_bring(replica, record, entry, replica.path_of(held, entry.path)) for entry in entries], entries
    return None


def _made(
    site: Site, replica: MountReplica, manifest: Manifest, record: Manifest, one: ParitySet, percent: float, source: str
) -> tuple[list[Carried], list[FileEntry]]:
    whence = site.copies[source]
    assert isinstance(whence, FolderCopy)
    files = [whence.path_of(manifest, entry.path) for entry in one.entries]
    # par2 names files by their path below the base: both must be the real ones, or a link on the way makes it refuse.
    base = files[0].parents[one.entries[0].path.count("/")].resolve()
    label = f"parity of {one.entries[0].path if len(one.entries) == 1 else f'{len(one.entries)} files'}"
    with scratch(site, replica, one.parity_bytes(percent), f"{replica.name}-{manifest.model}-make") as folder:
        archive = folder / f"{one.stem}-{percent:g}pct.par2"
        inside = [base / entry.path for entry in one.entries]
        par2.create(
            archive,
            base,
            inside,
            block_bytes=one.block_bytes(),
            recovery_blocks=one.recovery_blocks(percent),
            size_bytes=one.size_bytes,
            label=label,
        )
        brought, entries = [], []
        for path in sorted(folder.glob(f"{one.stem}-*.par2")):
            with LocalFile(path) as made:
                entry = FileEntry.of(f"{PARITY}/{path.name}", digest_source(made, stop=current_watch().stop))
            brought.append(_bring(replica, record, entry, path))
            entries.append(entry)
    log.info("%s · %s in %s: %s", manifest.model, label, replica.name, gb(sum(entry.size_bytes for entry in entries)))
    return brought, entries


def _bring(replica: MountReplica, record: Manifest, entry: FileEntry, path: Path) -> Carried:
    with LocalFile(path) as source:
        brought = replica.bring(record, entry, ProvenReader(entry, {"made": source}))
    return Carried(entry.path, brought.action, brought.bytes_written, how=brought.how)


@contextmanager
def scratch(site: Site, replica: FolderCopy, need_bytes: int, name: str) -> Iterator[Path]:
    """A folder of our own with room for *need_bytes*: in the store, else on the replica, else where temporary files go; gone at the end.

    What killed runs left goes first. :raises NoSpace: when none has the room.
    """
    places = [site.store.ours / "parity", replica.ours / "parity", Path(tempfile.gettempdir()) / "steelyard-parity"]
    for place in places:
        try:
            make_folder(place)
            _sweep(place)
            if free_bytes(place) < need_bytes:
                continue
            # A file system without links can't show par2 a file without moving it.
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=place))
            (folder / "probe").symlink_to("x")
            (folder / "probe").unlink()
        except (SteelyardError, OSError):
            continue
        break
    else:
        free = max((free_bytes(place) for place in places), default=0)
        raise NoSpace(place="scratch for parity", free=gb(free), need=gb(need_bytes), short=gb(need_bytes - free))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    for left in place.glob("*-*-*"):
        pid = left.name.split("-")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)


# --- judging it


def unusable(copy: Copy, manifest: Manifest) -> Finding | None:
    """What is wrong with a snapshot's parity as a whole: its record damaged, or not there although the config asks for it. None: it can be judged."""
    try:
        held = held_parity(copy, manifest)
    except BadRecord as error:
        return Finding("corrupt", why=error.message, proof="record")
    if held is None and lacks_parity(copy, manifest):
        return Finding("missing", why=f"no parity yet; run: steelyard backup {manifest.model} --to {copy.name}", proof="presence")
    return None
