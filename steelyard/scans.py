"""The Hub's own scan of a repo's files: recorded when a version is agreed on, watched ever after, and a gate where the config makes it one.

What it says is never more than a second opinion: our own look at a file decides what may be loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from steelyard.errors import SteelyardError, Untrusted
from steelyard.hub import Hub, Listing
from steelyard.lock import LockedModel
from steelyard.site import Site

log = logging.getLogger("steelyard")

RANK = {"safe": 0, "caution": 1, "suspicious": 2, "unsafe": 3}
"""The Hub's levels, by gravity. "queued" and "error" say nothing yet."""
GRAVE = 2
"""From this rank on a file counts as flagged."""


@dataclass(frozen=True)
class Scan:
    """What the Hub says of some files: *word* is the gravest level, "queued" while it has not looked, "" where it says nothing."""

    word: str = ""
    flagged: Mapping[str, str] = field(default_factory=dict)
    """Level by path, of files that it has something to say against."""

    @property
    def grave(self) -> dict[str, str]:
        return {path: level for path, level in self.flagged.items() if rank(level) >= GRAVE}


def rank(level: str) -> int:
    return RANK.get(level, 0)


def scan_of(listing: Listing, paths: Collection[str]) -> Scan:
    """What a listing says of *paths*; what it says of other files of the repo is nobody's business here."""
    flagged = {path: level for path, level in listing.flagged if path in paths or not path}
    return Scan(_worst(flagged.values(), "safe" if listing.scan != "queued" else "queued") if listing.scan else "", flagged)


def _worst(levels: Collection[str], none: str) -> str:
    return max(levels, key=rank, default=none)


def scan_now(hub: Hub, locked: LockedModel, listing: Listing | None) -> Scan:
    """What the Hub says today of the files that are held, at the commit that is held. Nothing, where it can't be asked.

    From *listing* where that is the same commit; else by one more request.
    """
    paths = [file.path for file in locked.files]
    if listing is not None and listing.commit == locked.commit:
        return scan_of(listing, paths)
    try:
        told: list[Any] = hub.ask(
            locked.repo_id, lambda: hub.api.get_paths_info(locked.repo_id, paths, expand=True, revision=locked.commit)
        )
    except SteelyardError as error:
        log.info("%s: what the Hub's scan says of %s can't be asked: %s", locked.repo_id, locked.commit[:8], error)
        return Scan()
    levels = {one.path: str(one.security.status) for one in told if getattr(one, "security", None) is not None}
    if not levels:
        return Scan()
    flagged = {path: level for path, level in levels.items() if rank(level)}
    waiting = any(level not in RANK for level in levels.values())
    return Scan(_worst(flagged.values(), "queued" if waiting else "safe"), flagged)


def newly_flagged(locked: LockedModel, *now: Scan) -> dict[str, str]:
    """The files that are flagged now and were not, or not so gravely, when *locked* was agreed on."""
    before = dict(locked.flagged)
    # A lock from before files were recorded one by one: its word stands for all of them.
    general = rank(locked.scan) if not before else 0
    found: dict[str, str] = {}
    for scan in now:
        for path, level in scan.grave.items():
            if rank(level) > max(rank(before.get(path, "")), general, rank(found.get(path, ""))):
                found[path] = level
    return found


def sentence(flagged: Mapping[str, str]) -> str:
    """ "the Hub's scan calls a.pt unsafe"."""
    named = ", ".join(f"{path or 'a file of it'} {level}" for path, level in list(flagged.items())[:3])
    more = f" and {len(flagged) - 3} more" if len(flagged) > 3 else ""
    return f"the Hub's scan calls {named}{more}"


def gate(site: Site, model: str, wanted: LockedModel) -> None:
    """Stop, warn, or let pass what the Hub's scan flags, as [hub] scan_gate says.

    :raises Untrusted: before anything is fetched or agreed on.
    """
    setting = site.config.hub.scan_gate
    grave = {path: level for path, level in wanted.flagged if rank(level) >= GRAVE}
    if not grave or setting == "off":
        return
    if setting == "refuse":
        file = next(iter(grave)) or "FILE"
        hint = (
            f'see what is in it: steelyard inspect hf://{wanted.repo_id}@{wanted.commit[:8]}/{file}; [hub] scan_gate = "warn" lets it pass'
        )
        raise Untrusted(path=f"{model} at {wanted.commit[:8]}", why=sentence(grave), hint=hint)
    log.warning("%s: %s; steelyard's own look decides what may be loaded", model, sentence(grave))
