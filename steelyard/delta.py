"""A new version of a file reuses what an older one at hand has of it: tensors by their container's checksum, pieces at the same place by a probe.

Nothing here decides that bytes are right: the new SHA-256 does, over all of them. A guess that was wrong costs one fetch of what it filled.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.errors import NotWhole, OtherSide, Range, SteelyardError
from steelyard.pieces import MIB, in_threads, merge_ranges, piece_ranges, piece_size
from steelyard.source import ByteSource, LocalFile, read_at
from steelyard.staging import Partial
from steelyard.watch import current_watch

if TYPE_CHECKING:
    from steelyard.checkpoint import Inspection

log = logging.getLogger("steelyard.delta")

LEAST_BYTES = 4 * MIB
"""Below this a plain fetch is as fast as finding out."""
LEAST_RUN_BYTES = 256 * 1024
"""A shorter run is fetched along with what is around it: a request costs more than it saves."""
GAP_BYTES = 4096
"""Between the storages of a zip lie headers; where both neighbours are the same and as far apart, so are they."""
PROBE_BYTES = 4096
FIRST_PROBES = 8


@dataclass(frozen=True)
class Reuse:
    """*length* bytes at *old* of the older file that are those at *new* of the new one: by their *crc32* where it is known, else by a probe."""

    old: int
    new: int
    length: int
    name: str = ""
    crc32: int | None = None


def seed_from_file(path: Path, new: ByteSource, *, connections: int = 4) -> Callable[[Partial], Sequence[Range]]:
    """The seed for fetch(): fills a partial from the older version at *path*, when there is one and that saves something."""

    def seed(partial: Partial) -> Sequence[Range]:
        if new.size_bytes < LEAST_BYTES or path.is_symlink() or not path.is_file():
            return ()
        try:
            with LocalFile(path) as old:
                seeded = seed_from(partial, old, plan_reuse(old, new, connections=connections))
        except OtherSide as error:
            log.info("%s: no comparison with the older version: %s", new.name, error)
            return ()
        reused = sum(end - start for start, end in seeded)
        if reused:
            log.info("%s: %d of %d bytes are those of the version at hand", new.name, reused, new.size_bytes)
        return seeded

    return seed


def seed_whole(path: Path) -> Callable[[Partial], Sequence[Range]]:
    """The seed for fetch() where *path* should hold these very bytes: all of them are copied, none is fetched."""

    def seed(partial: Partial) -> Sequence[Range]:
        try:
            with LocalFile(path) as old:
                return seed_from(partial, old, [Reuse(0, 0, old.size_bytes)]) if old.size_bytes == partial.size_bytes else ()
        except NotWhole:
            return ()

    return seed


def plan_reuse(old: ByteSource, new: ByteSource, *, connections: int = 4) -> tuple[Reuse, ...]:
    """What *old* probably has of *new*, by some small reads of *new*; nothing when it is not worth it."""
    runs = _by_container(old, new)
    if runs is None:
        runs = _at_same_place(old, new)
    # Checked before neighbours are joined: one damaged tensor of the file at hand must not spoil the sound ones beside it.
    known = [run for run in runs if run.crc32 is not None and _holds(old, run)]
    guessed = _probed([run for run in runs if run.crc32 is None], old, new, connections)
    planned = _joined(sorted([*known, *guessed], key=lambda run: run.new))
    return tuple(run for run in planned if run.length >= LEAST_RUN_BYTES)


def _by_container(old: ByteSource, new: ByteSource) -> list[Reuse] | None:
    """Storages that both have: by checksum and size (torch zip), by name and size where there is none (safetensors). None: no such containers."""
    from steelyard.checkpoint import inspect

    return _in_both(inspect(old), inspect(new))


def shared_bytes(one: Inspection, other: Inspection) -> int | None:
    """Bytes of *other* that an update takes from *one* instead of fetching them; None where only reading both would tell."""
    runs = _in_both(one, other)
    if runs is None or any(run.crc32 is None for run in runs):
        return None
    return sum(run.length for run in _joined(sorted(runs, key=lambda run: run.new)) if run.length >= LEAST_RUN_BYTES)


def _in_both(one: Inspection, other: Inspection) -> list[Reuse] | None:
    if one.format != other.format or other.format not in {"torch-zip", "torchscript", "safetensors"}:
        return None
    held = {}
    for storage in one.storages:
        if storage.offset is not None and not storage.compressed:
            held[_likeness(storage.key, storage.nbytes, storage.crc32)] = storage
    runs = []
    for storage in other.storages:
        match = held.get(_likeness(storage.key, storage.nbytes, storage.crc32))
        if storage.offset is None or storage.compressed or not storage.nbytes or match is None or match.offset is None:
            continue
        # The whole name: under another archive's name the headers between two storages are other bytes, though they have the same length.
        same = (storage.key, storage.record) == (match.key, match.record)
        name = storage.key if same else ""
        runs.append(Reuse(match.offset, storage.offset, storage.nbytes, name, storage.crc32))
    return runs


def _holds(old: ByteSource, run: Reuse) -> bool:
    current_watch().check()
    try:
        return _crc32(old, run.old, run.length) == run.crc32
    except SteelyardError as error:
        if error.exit_code != 1:
            raise
        return False  # what can't be read is not reused


def _likeness(key: str, nbytes: int, crc32: int | None) -> tuple[str | int, int]:
    return (crc32, nbytes) if crc32 is not None else (key, nbytes)


def _at_same_place(old: ByteSource, new: ByteSource) -> list[Reuse]:
    size = min(old.size_bytes, new.size_bytes)
    return [Reuse(start, start, end - start) for start, end in piece_ranges(size, piece_size(new.size_bytes))]


def _probed(runs: Sequence[Reuse], old: ByteSource, new: ByteSource, connections: int) -> list[Reuse]:
    """Those of *runs* whose middle is the same in both. A few first: where none of them is, the whole file is another one."""
    runs = [run for run in runs if run.length >= LEAST_RUN_BYTES]
    same: list[Reuse] = []

    def probe(run: Reuse) -> None:
        middle, length = run.length // 2, min(PROBE_BYTES, run.length)
        if read_at(old, run.old + middle, length) == read_at(new, run.new + middle, length):
            same.append(run)

    step = max(1, len(runs) // FIRST_PROBES)
    first, rest = runs[::step], [run for index, run in enumerate(runs) if index % step]
    for some in (first, rest):
        in_threads(probe, some, threads=connections, stop=current_watch().stop)
        if not same:
            break
    return same


def _joined(runs: Sequence[Reuse]) -> list[Reuse]:
    """Neighbours that are as far apart in both files as one run, with the headers between them."""
    joined: list[Reuse] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and run.new < last.new + last.length:
            continue  # storages never overlap in a sound file; whatever this is, the network has it right
        gap = run.new - (last.new + last.length) if last is not None else -1
        if (
            last is not None
            and gap == run.old - (last.old + last.length)
            and (gap == 0 or (0 < gap <= GAP_BYTES and run.name and last.name))
        ):
            # Checked as a whole no longer: the checksums were of the parts.
            joined[-1] = replace(last, length=run.new + run.length - last.new, crc32=None)
        else:
            joined.append(run)
    return joined


def seed_from(partial: Partial, old: ByteSource, plan: Sequence[Reuse]) -> tuple[Range, ...]:
    """Copy what *plan* names from *old* into an empty *partial*, journaled, and return what was filled.

    What can't be read of *old* is left out too: it is no reason not to fetch.
    """
    filled: list[Range] = []
    for run in plan:
        current_watch().check()
        try:
            for at in range(0, run.length, MIB):
                data = read_at(old, run.old + at, min(MIB, run.length - at))
                if data:
                    partial.put(run.new + at, data)
                    filled.append((run.new + at, run.new + at + len(data)))
        except SteelyardError as error:
            if error.exit_code != 1:
                raise
            log.info("%s can't be reused: %s", old.name, error)
    return merge_ranges(filled)


def _crc32(source: ByteSource, start: int, length: int) -> int:
    crc = 0
    for at in range(0, length, MIB):
        crc = zlib.crc32(read_at(source, start + at, min(MIB, length - at)), crc)
    return crc
