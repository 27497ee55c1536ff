"""The store's former place after a move: what was carried from there, so that `clean` may name just that, and nobody writes there by mistake."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.copies.base import Look
from steelyard.disk import mount_at, write_atomically
from steelyard.errors import BadRecord, SteelyardError
from steelyard.leaving import Leaving
from steelyard.leftovers import files_in
from steelyard.manifest import seal, unseal, utc_now
from steelyard.names import OURS
from steelyard.site import Site
from steelyard.store import MOVED

log = logging.getLogger("steelyard")

RECORDS = "moved-from"


@dataclass(frozen=True)
class Former:
    """*path*: where the store was (or lies aside by now); *link*: the path that became a link to the new place; *files*: name -> [size, mtime_ns]."""

    record: Path
    path: Path
    link: str
    at: str
    files: dict[str, list[int]]


def write_former(ours: Path, path: Path, link: str, files: dict[str, list[int]]) -> Path:
    """Record in the new store what was carried from *path*."""
    # To the microsecond: on a fast disk two moves end within a second, and each has its own former place.
    record = ours / RECORDS / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.json"
    write_atomically(record, seal({"path": str(path), "link": link, "at": utc_now(), "files": files}))
    return record


def formers(ours: Path) -> Iterator[Former]:
    """The records of former places, oldest first; a damaged one is passed over: what it named stays."""
    for path in files_in(ours, RECORDS):
        try:
            found: dict[str, Any] = unseal(path.read_bytes(), path)
            yield Former(path, Path(found["path"]), found["link"], found["at"], dict(found["files"]))
        except (OSError, BadRecord, KeyError, TypeError) as error:
            log.warning("%s can't be read, so what it names stays: %s", path, error)


def mark(former: Path, to: Path) -> None:
    """Leave word at the former place: a config that still names it is told, and nothing is written there."""
    if (former / OURS).is_dir():
        write_atomically(former / OURS / MOVED, seal({"to": str(to), "at": utc_now()}))


def former_places(site: Site) -> Iterator[Leaving]:
    """What a move left behind: named once every file of the new place is proven, and only what is there as it was when it was carried over."""
    store = site.store
    for former in formers(store.ours):
        if not former.path.is_dir() or former.path.resolve() == store.root.resolve():
            continue
        if bad := _unproven(site):
            log.warning("%s stays: %s is not proven at the new place; run: steelyard verify", former.path, bad)
            continue
        same, foreign = _same_as_carried(former)
        reason = f"the store's former place: all of it was proven at {store.root} ({former.at[:10]})"
        if foreign:
            log.info("%s: %d files there were never recorded, or changed since; they are left", former.path, foreign)
        elif mount_at(former.path) is None:
            yield Leaving(former.path.parent, former.path, reason, "store")
            yield Leaving(store.ours, former.record, reason, "store")
            continue
        yield from (Leaving(former.path, path, reason, "store") for path in same)


def _unproven(site: Site) -> str:
    for manifest in site.held_manifests():
        proofs = site.history.latest_of("store", manifest.model, manifest.commit)
        for entry in manifest.files:
            last = proofs[entry.path].finding if entry.path in proofs else None
            try:
                if not site.store.judge(manifest, entry, Look("quick"), last).ok:
                    return entry.path
            except SteelyardError:
                return entry.path
    return ""


def _same_as_carried(former: Former) -> tuple[list[Path], int]:
    """Files that are as they were when they were carried over (and our own folder), and how many others there are."""
    same, foreign = [], 0
    for base, folders, names in os.walk(former.path):
        here = Path(base)
        if here == former.path and OURS in folders and not (here / OURS).is_symlink():
            folders.remove(OURS)
            same.append(here / OURS)
        foreign += sum((here / name).is_symlink() for name in folders)
        for name in sorted(names):
            path = here / name
            seen = path.lstat()
            if former.files.get(path.relative_to(former.path).as_posix()) == [seen.st_size, seen.st_mtime_ns]:
                same.append(path)
            else:
                foreign += 1
    return same, foreign
