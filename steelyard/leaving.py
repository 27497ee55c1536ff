"""What may go: priced before, never more than was named, removed below its root without following a link or leaving the file system."""

from __future__ import annotations

import os
import stat as stat_bits
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from steelyard.disk import mounts
from steelyard.errors import Refused, SteelyardError
from steelyard.extents import own_bytes
from steelyard.site import Site


@dataclass(frozen=True)
class Leaving:
    """A file or folder below *root* that may go, with all that is in it. *bytes*: what that frees, filled in by priced()."""

    root: Path
    path: Path
    reason: str
    copy: str
    model: str = ""
    commit: str = ""
    bytes: int = 0


def priced(leaving: Sequence[Leaving]) -> list[Leaving]:
    """The same with the bytes that each frees: its files' sizes, without holes and without what stays under another name or in another file.

    Bytes under several names that all go are counted with the last of them. One that lies in another is dropped, and so is what is gone by now.
    """
    leaving = list({one.path: one for one in leaving}.values())
    folders = {one.path for one in leaving}
    apart = [one for one in leaving if not folders & set(one.path.parents)]
    bytes_of = [0] * len(apart)
    names: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    there = set()
    for number, one in enumerate(apart):
        for path, seen in _walk(one.path):
            there.add(number)
            if not stat_bits.S_ISREG(seen.st_mode):
                continue
            own = own_bytes(path, min(seen.st_size, seen.st_blocks * 512))
            if seen.st_nlink == 1:
                bytes_of[number] += own
            else:
                key = (seen.st_dev, seen.st_ino)
                names[key] = (names.get(key, (0,))[0] + 1, seen.st_nlink, own, number)
    for count, links, own, number in names.values():
        if count >= links:
            bytes_of[number] += own
    return [replace(one, bytes=bytes_of[number]) for number, one in enumerate(apart) if number in there]


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """*path* and all below it, without following links or leaving its file system."""
    try:
        seen = path.lstat()
    except OSError:
        return
    yield path, seen
    if not stat_bits.S_ISDIR(seen.st_mode):
        return
    try:
        children = sorted(path.iterdir())
    except OSError:
        return
    for child in children:
        for inner, state in _walk(child):
            if state.st_dev == seen.st_dev:
                yield inner, state


class Guard:
    """The paths that must stay whatever was planned: every file of what is current, the roots, the config and the lock."""

    def __init__(self, site: Site) -> None:
        store = site.config.store
        roots = [store.models, store.models / ".steelyard" / "manifests", store.hf_home, store.hub_cache, site.path, site.lock_path]
        roots += [store.outputs] if store.outputs else []
        roots += [path for name in site.replicas if isinstance(path := getattr(site.replicas[name], "root", None), Path)]
        roots += [site.config.folder(name) for name in site.config.models]
        kept = [*roots, *_current(site)]
        self._kept = {one for path in kept for one in (_real(path), *_real(path).parents)}

    def allows(self, one: Leaving) -> bool:
        """Whether *one* neither is nor holds anything that must stay."""
        return _real(one.path) not in self._kept


def _real(path: Path) -> Path:
    """Links on the way are seen through, the last part is not: it is the name that goes or stays."""
    return path.parent.resolve() / path.name


def _current(site: Site) -> Iterator[Path]:
    try:
        models = site.lock().models
    except SteelyardError:
        return
    for model, locked in models.items():
        if model not in site.config.models:
            continue
        manifest = site.manifest(model, locked.commit)
        for file in locked.files:
            yield site.store.path_of_model(model, file.path)
        for entry in manifest.files:
            yield site.hub_cache.path_of(manifest, entry.path)
            yield site.hub_cache.link_of(manifest, entry.path)


def remove(top: Path, one: Leaving, path: Path | None = None) -> None:
    """Remove *one* (found at *path* by now), which lies below the folder *top*. No link on the way or in it is followed.

    :raises Refused: where something else is mounted in it, or it lies on another file system; what was removed before stays removed.
    :raises OSError: as the file system gives it.
    """
    path = path or one.path
    if inside := [mount.point for mount in mounts() if mount.point.is_relative_to(path.resolve())]:
        raise Refused(why=f"{inside[0]} is mounted in {one.path}, which may be another file system and was left", hint="unmount it first")
    with _opened(top, path.relative_to(top).parts[:-1]) as (parent, device):
        _remove_at(parent, path.name, device, one.path)
        os.fsync(parent)


@contextmanager
def _opened(top: Path, parts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The folder *parts* below *top*, opened step by step, and the device of *top*, which itself may be reached through a link."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(fd).st_dev
        for part in parts:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd, device
    finally:
        os.close(fd)


def _remove_at(parent: int, name: str, device: int, shown: Path) -> None:
    seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if seen.st_dev != device:
        raise Refused(why=f"{shown} lies on another file system and was left", hint="unmount what is mounted there")
    if not stat_bits.S_ISDIR(seen.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        with os.scandir(fd) as entries:
            children = [entry.name for entry in entries]
        for child in children:
            _remove_at(fd, child, device, shown / child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
