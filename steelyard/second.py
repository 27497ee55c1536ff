"""The hub cache's own copy of a file, written from the same memory while the file arrives: two real copies, and nothing is read again for the second.

It is worth something only when one undisturbed pass has filled both: what a killed or a wrong arrival left of it is made anew, from the proven file.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from steelyard.errors import Range, SteelyardError
from steelyard.pieces import merge_ranges
from steelyard.staging import Partial

if TYPE_CHECKING:
    from steelyard.lock import LockedFile
    from steelyard.site import Site

log = logging.getLogger("steelyard")


class SecondCopy:
    """Takes every block that the staged file takes. Its own trouble never ends the download. Use as a context manager."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._written: list[Range] = []
        self._lock = threading.Lock()
        self._given_up = False

    def write(self, offset: int, block: memoryview) -> None:
        """Put *block* in place, from any thread. Not recorded: a later run must not believe it, for it is proven by this pass alone."""
        if self._given_up:
            return
        try:
            self._partial.write(offset, block)
        except SteelyardError as error:
            log.warning("the hub cache's copy is made later: %s", error)
            self.give_up()
            return
        with self._lock:
            self._written.append((offset, offset + len(block)))

    def forget(self) -> None:
        """What came so far was wrong: the whole file comes once more."""
        with self._lock:
            self._written.clear()

    def give_up(self) -> None:
        """Some bytes of the file did not or will not come through here."""
        self._given_up = True

    def publish(self, blob: Path) -> bool:
        """Under its final name, when it is whole; the file must be proven by now. False when it is not whole, and then nothing is there.

        :raises ReadOnly, Unreadable: when it can't be made to last.
        """
        with self._lock:
            whole = merge_ranges(self._written) == ((0, self._partial.size_bytes),)
        if self._given_up or not whole or blob.exists() or blob.is_symlink():
            return False
        self._partial.publish(blob)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._partial.close()


def second_copy(site: Site, file: LockedFile, blob: Path) -> SecondCopy | None:
    """The second copy of *file* to write while it arrives; None where there will be none, or it is no trouble saved."""
    views = site.config.store.views
    if not file.sha256 or blob.exists() or blob.is_symlink() or views in {"hardlink", "reflink"}:
        return None
    cache = site.hub_cache
    try:
        if views == "auto" and cache.can_share(site.store.root, "reflink"):
            return None
        cache.ready(write=True)
        partial = Partial(cache.ours / "staging", file.path, file.sha256, file.size_bytes)
    except SteelyardError as error:
        log.info("the hub cache's copy is made later: %s", error)
        return None
    if partial.have() or not partial.reserved:
        # Proven pieces of an earlier run are gone on with by who made them.
        partial.close()
        return None
    return SecondCopy(partial)
