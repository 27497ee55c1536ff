"""Snapshots that are as they were when every file of them was last proven whole: one word in the history stands for all their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from steelyard.copies.base import Copy
from steelyard.copies.judging import as_text
from steelyard.manifest import FileEntry, Manifest
from steelyard.site import Site
from steelyard.states import State, word_of


@runtime_checkable
class TellsStates(Protocol):
    """A copy that can say cheaply what all of a snapshot looks like: a stat a file, or one listing."""

    def stats(self, manifest: Manifest, entries: Sequence[FileEntry]) -> Mapping[str, State | str]:
        """The state of each of *entries* (and of the snapshot's records) by path; empty when one is not there with its size."""


def is_settled(site: Site, copy: Copy, manifest: Manifest, entries: Sequence[FileEntry]) -> bool:
    """Whether sizes, times and inodes (in a bucket: ETags) are as they were when all of it was last proven."""
    if not isinstance(copy, TellsStates):
        return False
    kept = site.history.state(copy.name, manifest.model, manifest.commit)
    return bool(kept) and kept == word_of(copy.stats(manifest, entries))


def settle(site: Site, copy: Copy, manifest: Manifest, entries: Sequence[FileEntry]) -> None:
    """Remember what *entries* look like, if each still looks as it did when it was proven."""
    now = copy.stats(manifest, entries) if isinstance(copy, TellsStates) else {}
    proofs = site.history.latest_of(copy.name, manifest.model, manifest.commit) if now else {}
    if now and all((proof := proofs.get(one.path)) and proof.finding.ok and _same(proof.finding.stat, now[one.path]) for one in entries):
        site.history.keep_state(copy.name, manifest.model, manifest.commit, word_of(now))


def _same(proven: str, now: State | str) -> bool:
    now = now if isinstance(now, str) else as_text(now)
    # A listing of a bucket knows no versions: its states end where the version would begin.
    return proven == now or (now.endswith(":") and proven.startswith(now))
