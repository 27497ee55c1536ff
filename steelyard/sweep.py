"""Leftovers of runs that were killed: ours are removed when nothing wants them any more, those of huggingface_hub are counted and left."""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from steelyard.disk import gb
from steelyard.leftovers import orphans
from steelyard.site import Site

log = logging.getLogger("steelyard")


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
    stagings = (site.store.ours / "staging", site.hub_cache.ours / "staging")
    removed = [size for staging in stagings for path in orphans(site, staging) if (size := _remove(path)) is not None]
    left = [path.stat().st_size for path in site.hub_cache.root.glob("models--*/blobs/*.incomplete") if path.is_file()]
    swept = Swept(len(removed), sum(removed), len(left), sum(left))
    if removed:
        log.info("removed %d orphaned partials (%s)", len(removed), gb(swept.removed_bytes))
    if left:
        log.info(
            "huggingface_hub left %d unfinished downloads (%s) that it never goes on with: steelyard clean", len(left), gb(swept.left_bytes)
        )
    return swept


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
