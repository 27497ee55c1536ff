"""Power loss: what was written since the last fsync may be gone, and so may names made since the last fsync of their folder.

The model is POSIX's, stricter than any one file system: each write to a file that was not fsynced after it is kept or lost by the toss of a coin; of
the changes to names whose folder was not fsynced after them, those after a random moment are undone, latest first.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_pwrite, _pread, _ftruncate, _open, _close = os.pwrite, os.pread, os.ftruncate, os.open, os.close
_rename, _unlink, _rmdir, _link, _symlink, _readlink = os.rename, os.unlink, os.rmdir, os.link, os.symlink, os.readlink


@dataclass
class Name:
    """A change to a name. *was* is what a replaced or removed name held: bytes, or where a link pointed."""

    kind: str
    places: tuple[str, ...]
    was: bytes | str | None = None
    was_hard: int = 0


@dataclass
class Data:
    """Bytes that a write covered, by a descriptor of our own (names change)."""

    inode: tuple[int, int]
    fd: int
    offset: int
    old: bytes
    size_bytes: int


@dataclass
class Loss:
    """Everything that is not on the medium yet."""

    seed: int
    names: list[Name] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    lost: int = 0
    _fds: dict[tuple[int, int], int] = field(default_factory=dict)

    def before(self, kind: str, places: tuple[str, ...]) -> Name:
        """What must be known of a name before it changes."""
        change = Name(kind, places)
        target = places[-1]
        if kind in {"rename", "unlink"} and os.path.lexists(target):
            if os.path.islink(target):
                change.was = _readlink(target)
            elif os.path.isfile(target):
                fd = _open(target, os.O_RDONLY)
                # A descriptor keeps the file alive when its last name goes; /proc can give it a name again only by content.
                change.was = _pread(fd, os.fstat(fd).st_size, 0)
                _close(fd)
        return change

    def did(self, change: Name) -> None:
        self.names.append(change)

    def writing(self, fd: int, name: str, args: tuple[Any, ...]) -> None:
        seen = os.fstat(fd)
        inode = (seen.st_dev, seen.st_ino)
        if inode not in self._fds:
            self._fds[inode] = _open(f"/proc/self/fd/{fd}", os.O_RDWR)
        ours = self._fds[inode]
        if name in {"ftruncate", "truncate"}:
            offset, length = int(args[0]), max(0, seen.st_size - int(args[0]))
        else:
            length = memoryview(args[0]).nbytes
            offset = int(args[1]) if name == "pwrite" else os.lseek(fd, 0, os.SEEK_CUR)
        self.data.append(Data(inode, ours, offset, _pread(ours, length, offset), seen.st_size))

    def synced(self, fd: int, place: str) -> None:
        seen = os.fstat(fd)
        inode = (seen.st_dev, seen.st_ino)
        self.data = [one for one in self.data if one.inode != inode]
        self.names = [one for one in self.names if os.path.dirname(one.places[-1]) != place]

    def synced_all(self) -> None:
        self.data, self.names = [], []

    def happen(self) -> None:
        """The lights go out."""
        rng = random.Random(self.seed)
        for one in reversed(self.data):
            if rng.random() < 0.5:
                with suppress(OSError):
                    _pwrite(one.fd, one.old + bytes(0), one.offset)
                    if rng.random() < 0.5 and os.fstat(one.fd).st_size > one.size_bytes:
                        _ftruncate(one.fd, one.size_bytes)
                    self.lost += 1
        for change in reversed(self.names[rng.randint(0, len(self.names)) :]):
            with suppress(OSError):
                self._undo(change)
                self.lost += 1

    def _undo(self, change: Name) -> None:
        target = change.places[-1]
        if change.kind == "rename" and os.path.lexists(target) and not os.path.lexists(change.places[0]):
            _rename(target, change.places[0])
        elif change.kind in {"open", "link", "symlink"} and os.path.lexists(target):
            _unlink(target)
        elif change.kind == "mkdir":
            _rmdir(target)  # fails where something in it lasted
        if change.was is not None and not os.path.lexists(target):
            if isinstance(change.was, str):
                _symlink(change.was, target)
            else:
                fd = _open(target, os.O_WRONLY | os.O_CREAT, 0o644)
                _pwrite(fd, change.was, 0)
                _close(fd)
