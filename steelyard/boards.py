"""A place in a replica where machines leave a note for the others: `_fleet/<host>.json` beside the models' folders. A model can't have that name."""

from __future__ import annotations

import os
import re
import stat as stat_bits
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from steelyard.copies.base import Copy
from steelyard.copies.folder import FolderCopy, below
from steelyard.disk import errors_of, write_atomically
from steelyard.errors import BadRecord

FOLDER = "_fleet"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MOST_BYTES = 64 * 1000**2
"""A note longer than this is not read: 1,000 models on a machine come to about 1 MB."""
MOST_NOTES = 10_000


class Board(Protocol):
    """Notes of hosts, by name. A note is whole or not there; what it says is checked by who reads it."""

    def put(self, host: str, data: bytes) -> None:
        """Leave *host*'s note, over its older one. :raises Refused, OtherSide:"""

    def get(self, host: str) -> bytes | None:
        """:raises BadRecord: when it is too long or no plain file. :raises NotWhole, OtherSide:"""

    def hosts(self) -> list[str]:
        """Whose notes are there. :raises OtherSide:"""


def board_of(copy: Copy) -> Board:
    """The board of a replica that is ready."""
    if isinstance(copy, FolderCopy):
        return _Drive(copy)
    from steelyard.copies.s3_board import BucketBoard

    return BucketBoard.of(copy)


@dataclass(frozen=True)
class _Drive:
    copy: FolderCopy

    def put(self, host: str, data: bytes) -> None:
        with self.copy.held() as root:
            write_atomically(below(root, self.copy.root, self.copy.root / FOLDER / f"{host}.json"), data)

    def get(self, host: str) -> bytes | None:
        path = self.copy.root / FOLDER / f"{host}.json"
        try:
            # No link is followed: another machine may have put it there. O_NONBLOCK: opening a FIFO must not hang.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadRecord(path=str(path), why=error.strerror or "it can't be read") from error
        seen = os.fstat(fd)
        if not stat_bits.S_ISREG(seen.st_mode) or seen.st_size > MOST_BYTES:
            os.close(fd)
            raise BadRecord(path=str(path), why="it is no plain file of bearable length")
        with open(fd, "rb") as file, errors_of(path):
            return file.read(MOST_BYTES)

    def hosts(self) -> list[str]:
        folder = self.copy.root / FOLDER
        try:
            names = [path.name for path in folder.iterdir()] if not folder.is_symlink() else []
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise BadRecord(path=str(folder), why=error.strerror or "it can't be read") from error
        return sorted(hosts_in(names))[:MOST_NOTES]


def hosts_in(names: list[str]) -> Iterator[str]:
    for name in names:
        host, dot, kind = name.rpartition(".")
        if dot and kind == "json" and NAME.fullmatch(host):
            yield host
