"""The drive below a replica: is it there, is it the right one, and how to write so that nothing can land beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.copies.marker import Shelf, read_marker
from steelyard.disk import errors_of, existing_parent, mount_at, mount_of_fd
from steelyard.errors import BadRecord, Missing, MountAbsent, ReadOnly, SteelyardError, Unreadable

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class Drive:
    """*root* is the replica's folder, *point* where its drive must be mounted (None: a plain folder); *shelf* knows the ids of marked drives."""

    name: str
    root: Path
    point: Path | None = None
    shelf: Shelf | None = None

    def check(self, *, write: bool, any_drive: bool = False) -> None:
        """:raises MountAbsent: when nothing is mounted, or another drive is known. :raises ReadOnly: when it is mounted read-only."""
        if self.point is not None:
            mount = mount_at(self.point)
            if mount is None:
                raise MountAbsent(why=f"{self.name}: nothing is mounted at {self.point}, so nothing was written", copy=self.name)
            if write and mount.read_only:
                hint = f"run: mount -o remount,rw {self.point} (if it fell to read-only by itself, look at dmesg first)"
                raise ReadOnly(place=f"{self.name} ({self.point})", why="it is mounted read-only", hint=hint)
        with self._opened(existing_parent(self.root)):
            pass
        if not any_drive:
            self._check_marker(self.root, write=write)

    @contextmanager
    def held(self, *, any_drive: bool = False) -> Iterator[Path]:
        """The open folder itself, by way of /proc: what is written below it reaches this drive or nothing, whatever is mounted meanwhile.

        :raises MountAbsent: when it is not (or no longer) the drive's; errors of the block name the paths that a person knows.
        """
        with self._opened(self.root) as root:
            if not any_drive:
                self._check_marker(root, write=True)
            try:
                yield root
            except SteelyardError as error:
                raise self._told(error, root, self.root) from error

    @contextmanager
    def held_above(self) -> Iterator[Path]:
        """The root, which need not exist yet, reached through the nearest folder above it that does."""
        there = existing_parent(self.root)
        with self._opened(there) as above:
            try:
                yield above / self.root.relative_to(there)
            except SteelyardError as error:
                raise self._told(error, above, there) from error

    @contextmanager
    def held_where_it_ends(self) -> Iterator[Path]:
        """The nearest folder on the way to the root that is there: for a probe before anything is made."""
        there = existing_parent(self.root)
        with self._opened(there) as above:
            try:
                yield above
            except SteelyardError as error:
                raise self._told(error, above, there) from error

    @contextmanager
    def _opened(self, folder: Path) -> Iterator[Path]:
        with errors_of(folder):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check_fd(fd)
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _check_fd(self, fd: int) -> None:
        """What was opened must lie on the very mount at the mount point: not below an unmounted one, not on another beneath or beside it."""
        if self.point is None:
            return
        mount = mount_of_fd(fd)
        if mount is None or mount.point != self.point.resolve():
            now = f"lies on the mount at {mount.point}" if mount is not None else "is no longer mounted"
            raise MountAbsent(
                why=f"{self.name}: {self.root} {now} and not on one at {self.point}, so nothing was written there", copy=self.name
            )

    def _check_marker(self, root: Path, *, write: bool) -> None:
        known = self.shelf.known() if self.shelf is not None else {}
        if not known:
            return
        try:
            marker = read_marker(root)
        except BadRecord as error:
            log.warning("%s", error.message)
            marker = None
        if marker is not None and marker.ident in known:
            return
        seen = f"another drive is mounted there ({marker.ident})" if marker else "the drive there has no marker of ours"
        if not write:
            log.warning("%s: %s; what is read is proven all the same", self.name, seen)
            return
        hint = f"mount the right drive; if this one is to be used from now on, run: steelyard target {self.name}"
        raise MountAbsent(why=f"{self.name}: {seen}, so nothing was written", hint=hint, copy=self.name)

    def ident(self) -> str:
        """The id on the drive's marker, or "" where it has none."""
        try:
            marker = read_marker(self.root)
        except BadRecord:
            return ""
        return marker.ident if marker else ""

    def _told(self, error: SteelyardError, held: Path, named: Path) -> SteelyardError:
        """The same error with the paths that a person knows; an I/O error of a drive that is no longer there says so."""
        if error.exit_code == 130 or isinstance(error, MountAbsent):
            return error
        if isinstance(error, Unreadable | Missing | ReadOnly) and self.point is not None and mount_at(self.point) is None:
            why = f"{self.name}: the drive at {self.point} went away while it was written to; nothing half stands under a final name"
            return MountAbsent(why=why, copy=self.name)
        facts = {key: _renamed(value, str(held), str(named)) for key, value in error.facts.items()}
        return type(error)(hint=error.hint.replace(str(held), str(named)), **facts)


def _renamed(value: Any, held: str, named: str) -> Any:
    return type(value)(str(value).replace(held, named)) if isinstance(value, str | Path) else value
