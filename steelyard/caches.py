"""What grows beside the weights and can be had again: old outputs by the user's pattern, Xet's caches beyond their budget, pip's cache."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from steelyard.leaving import Leaving
from steelyard.leftovers import files_below, folders_in, newest
from steelyard.site import Site

log = logging.getLogger("steelyard")

XET_CACHES = ("chunk-cache", "chunk_cache", "shard-cache", "shard_cache")
"""What the library may lose at any time; "staging" beside them holds uploads."""
IN_USE_S = 3600.0
PIP_CACHES = ("http", "http-v2", "wheels")
DAY_S = 86_400.0


def caches(site: Site, *, pip: bool = False) -> Iterator[Leaving]:
    """*pip*: name pip's cache too, whatever the config says."""
    yield from old_outputs(site)
    yield from _xet(site)
    if pip or site.config.clean.pip_cache:
        yield from _pip()


def old_outputs(site: Site) -> Iterator[Leaving]:
    """Files and folders below store.outputs that a pattern of [clean] outputs names and in which nothing changed for long enough."""
    settings, top = site.config.clean, site.config.store.outputs
    if top is None or not settings.outputs or not top.is_dir():
        return
    before = time.time() - settings.outputs_older_than
    for pattern in settings.outputs:
        for path in _matching(top, pattern.split("/")):
            if path.is_symlink():
                log.info("%s is a link: neither it nor what it leads to is touched", path)
            elif newest(path) < before:
                days = settings.outputs_older_than / DAY_S
                yield Leaving(top, path, f"an output by the pattern {pattern!r}, unchanged for {days:g} days", "outputs")


def _matching(folder: Path, parts: list[str]) -> Iterator[Path]:
    """As glob has it, part by part, but never through a link."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if fnmatchcase(path.name, parts[0]) and (parts[0].startswith(".") or not path.name.startswith(".")):
            if len(parts) == 1:
                yield path
            elif path.is_dir() and not path.is_symlink():
                yield from _matching(path, parts[1:])


def _xet(site: Site) -> Iterator[Leaving]:
    """The files longest unused, until the rest is within the budget; what was used within the hour stays."""
    top = site.config.store.hf_home / "xet"
    found = [
        (max(seen.st_atime, seen.st_mtime), seen.st_blocks * 512, path)
        for host in folders_in(top)
        for cache in folders_in(top, host.name)
        if cache.name in XET_CACHES
        for path in files_below(top, host.name, cache.name)
        for seen in (path.lstat(),)
    ]
    over = sum(size for _, size, _ in found) - site.config.clean.xet_cache
    for used, size, path in sorted(found):
        if over <= 0 or used > time.time() - IN_USE_S:
            break
        over -= size
        yield Leaving(top, path, "Xet's cache is larger than [clean] xet_cache, and this was not used for longest", "xet")


def _pip() -> Iterator[Leaving]:
    """pip's own folder, as pip finds it (PIP_CACHE_DIR, XDG_CACHE_HOME, ~/.cache/pip): downloads and wheels that pip can have again."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    top = Path(os.environ.get("PIP_CACHE_DIR") or Path(home) / "pip")
    for path in folders_in(top):
        if path.name in PIP_CACHES:
            yield Leaving(top, path, "pip's cache: asked for", "pip")
