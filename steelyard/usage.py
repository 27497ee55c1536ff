"""What is whose on a file system: real bytes (blocks on the medium), each counted once, however many names or reflinks lead to them."""

from __future__ import annotations

import os
import stat as stat_bits
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from steelyard.errors import SteelyardError
from steelyard.extents import extents
from steelyard.file_systems import FileSystem
from steelyard.names import OURS
from steelyard.site import Site

Kind = Literal["weights", "hub cache", "Xet cache", "snapshots", "quarantine", "partials", "outputs", "other"]
KINDS: tuple[Kind, ...] = ("weights", "hub cache", "Xet cache", "snapshots", "quarantine", "partials", "outputs", "other")
"""In the order in which shared bytes are given to one of them; "other" is what is not ours."""
LONGEST_S = 20.0
SHARED_FROM_BYTES = 1 << 20
"""Smaller files are not asked where they lie: it would cost more than it tells."""
_OURS: dict[str, Kind] = {"staging": "partials", "drill": "partials", "going": "partials", "quarantine": "quarantine"}


@dataclass
class Usage:
    """Bytes on the medium by kind. *complete* is False where the walk was ended by its time limit: the rest then counts as other."""

    kinds: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    files: int = 0
    complete: bool = True
    shared_bytes: int = 0
    """What further names and reflinks would add if each were counted."""


class _Claims:
    """Ranges of the medium that were counted already. Reflinked files show the same ones."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def claim(self, start: int, length: int) -> int:
        """How many bytes of the range were not counted yet; they are now."""
        end = start + length
        first = bisect_left(self._ends, start)
        last, covered, low, high = first, 0, start, end
        while last < len(self._starts) and self._starts[last] <= end:
            covered += max(0, min(end, self._ends[last]) - max(start, self._starts[last]))
            low, high = min(low, self._starts[last]), max(high, self._ends[last])
            last += 1
        self._starts[first:last], self._ends[first:last] = [low], [high]
        return length - covered


def usage(site: Site, where: FileSystem, *, longest_s: float = LONGEST_S) -> Usage:
    """Walk what is ours on *where*, never onto another file system or through a link, for *longest_s* at most."""
    found, claims, seen = Usage(), _Claims(), set[int]()
    ends = time.monotonic() + longest_s
    for kind, path, status in _walk(site, where):
        found.files += 1
        if found.files % 256 == 0 and time.monotonic() > ends:
            found.complete = False
            break
        size = status.st_blocks * 512
        if status.st_ino in seen:
            found.shared_bytes += size
            continue
        if status.st_nlink > 1:
            seen.add(status.st_ino)
        own = _own(path, size, claims)
        found.kinds[kind] += own
        found.shared_bytes += size - own
    used = where.total_bytes - where.free_bytes - where.reserved_bytes
    found.kinds["other"] = max(0, used - sum(found.kinds[kind] for kind in KINDS if kind != "other"))
    return found


def _own(path: Path, size: int, claims: _Claims) -> int:
    """The file's bytes on the medium that no file before it has shown. Where the file system tells nothing, all."""
    if size < SHARED_FROM_BYTES:
        return size
    try:
        there = extents(path)
    except OSError:
        return size
    shared = [one for one in there or () if one.shared]
    return max(0, size - sum(one.length - claims.claim(one.physical, one.length) for one in shared))


def _walk(site: Site, where: FileSystem) -> Iterator[tuple[Kind, Path, os.stat_result]]:
    """Files of ours with their kind; weights first, so that what is shared with them is theirs."""
    on = {place.name for place in where.places}
    later: list[tuple[Kind, Path]] = []
    if "models" in on:
        yield from _weights(site, where.device)
        later += _ours(site.store.ours)
    if "hf_home" in on:
        later += [("hub cache", site.config.store.hub_cache), ("Xet cache", site.config.store.hf_home / "xet")]
        if site.hub_cache.ours != site.store.ours:
            later += _ours(site.hub_cache.ours)
    for place in where.places:
        if place.name in site.config.replicas:
            later += [("snapshots", place.path), *_ours(place.path / OURS)]
    if "outputs" in on and site.config.store.outputs is not None:
        later.append(("outputs", site.config.store.outputs))
    for kind, top in later:
        for path, status in _files(top, where.device, skip=kind not in {"quarantine", "partials"}):
            yield "partials" if kind == "hub cache" and path.name.endswith(".incomplete") else kind, path, status


def _ours(folder: Path) -> list[tuple[Kind, Path]]:
    return [(kind, folder / name) for name, kind in _OURS.items()]


def _weights(site: Site, device: int) -> Iterator[tuple[Kind, Path, os.stat_result]]:
    try:
        models = site.lock().models
    except SteelyardError:
        return  # nobody knows what is ours then
    for name, held in models.items():
        if name in site.config.models:
            folder = site.config.folder(name)
            for file in held.files:
                try:
                    seen = (folder / file.path).lstat()
                except OSError:
                    continue
                if seen.st_dev == device and stat_bits.S_ISREG(seen.st_mode):
                    yield "weights", folder / file.path, seen


def _files(top: Path, device: int, *, skip: bool) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files below *top* on *device*; with *skip* not those of our own folders."""
    todo = [top]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    seen = entry.stat(follow_symlinks=False)
                    if seen.st_dev != device:
                        continue
                    if stat_bits.S_ISDIR(seen.st_mode):
                        if not (skip and entry.name == OURS):
                            todo.append(Path(entry.path))
                    elif stat_bits.S_ISREG(seen.st_mode):
                        yield Path(entry.path), seen
        except OSError:
            continue
