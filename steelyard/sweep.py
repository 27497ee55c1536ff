"""Leftovers of runs that were killed: ours are removed when nothing wants them any more, those of huggingface_hub are counted and left."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from steelyard.disk import gb
from steelyard.site import Site
from steelyard.staging import partial_paths

log = logging.getLogger("steelyard")

UNWANTED_FOR_S = 86_400.0
"""A partial that no lock names may be an update's or a restore's that will go on; nobody does after a day."""
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(partial|link)$")


@dataclass(frozen=True)
class Swept:
    """*removed* are ours; *left* are unfinished downloads of huggingface_hub, which it never goes on with."""

    removed: int = 0
    removed_bytes: int = 0
    left: int = 0
    left_bytes: int = 0

    def __add__(self, other: Swept) -> Swept:
        # What is left is the same for every model of a run.
        return Swept(self.removed + other.removed, self.removed_bytes + other.removed_bytes, other.left, other.left_bytes)

    def as_json(self) -> dict[str, int]:
        return {one.name: asdict(self)[one.name] for one in fields(self)}


def sweep(site: Site) -> Swept:
    """Remove what is ours and unwanted from the staging folders of store and hub cache, and count what the library left."""
    removed = [size for path in _unwanted(site) if (size := _remove(path)) is not None]
    left = [path.stat().st_size for path in site.hub_cache.root.glob("models--*/blobs/*.incomplete") if path.is_file()]
    swept = Swept(len(removed), sum(removed), len(left), sum(left))
    if removed:
        log.info("removed %d orphaned partials (%s)", len(removed), gb(swept.removed_bytes))
    if left:
        log.info(
            "huggingface_hub left %d unfinished downloads (%s) that it never goes on with: steelyard clean", len(left), gb(swept.left_bytes)
        )
    return swept


def _unwanted(site: Site) -> list[Path]:
    found = []
    for staging in (site.store.ours / "staging", site.hub_cache.ours / "staging"):
        wanted = _wanted(site, staging)
        for path in staging.iterdir() if staging.is_dir() else ():
            if hidden := _HIDDEN.fullmatch(path.name):
                if not _runs(int(hidden["pid"])):
                    found.append(path)
            elif path.suffix in {".partial", ".journal", ".new"} and path not in wanted and _age_s(path) > UNWANTED_FOR_S:
                found.append(path)
    return found


def _wanted(site: Site, staging: Path) -> set[Path]:
    """Partials that a download begun now would go on with."""
    wanted: set[Path] = set()
    for model, locked in site.lock().models.items():
        if model in site.config.models:
            sha256 = {entry.path: entry.sha256 for entry in site.manifest(model, locked.commit).files}
            for file in locked.files:
                for identity in {file.etag, sha256.get(file.path, file.etag)}:
                    wanted |= set(partial_paths(staging, file.path, identity))
    return wanted


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> int | None:
    """Its size, when it was removed; None when a run has it open, or it is no file of its own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(fd).st_blocks * 512
        path.unlink(missing_ok=True)
        return size
    except OSError:
        return None
    finally:
        os.close(fd)
