"""Bytes that can be read by range, wherever they lie: a local file, a range of the Hub, an S3 object."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from steelyard.direct import open_direct, read_direct
from steelyard.errors import Missing, Unreadable, WrongType

READ_BYTES = 2 << 20
"""Digests are fed in reads of this size: shorter ones cost more calls than they save in the cache, a whole piece falls out of it."""
DIRECT_READ_BYTES = 4 << 20
"""Past the page cache nobody reads ahead for us: one read must be long enough to keep the medium busy."""


@runtime_checkable
class ByteSource(Protocol):
    """A file of known size whose ranges can be read in any order, by several threads at once."""

    @property
    def name(self) -> str:
        """What to call it in a message: a path or a URL without secrets."""

    @property
    def size_bytes(self) -> int: ...

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Fill *buffer* from *offset*; fewer bytes than asked for only at the end of the file.

        :raises Unreadable: when the medium gives an error; .ranges says where.
        :raises OtherSide: when a remote source fails.
        """

    def close(self) -> None: ...


def read_at(source: ByteSource, offset: int, length: int) -> bytes:
    """Exactly *length* bytes from *offset*, or fewer where the file ends."""
    buffer = bytearray(length)
    got = source.readinto(offset, memoryview(buffer))
    return bytes(buffer[:got])


class BytesFile:
    """A file that is in memory whole."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self._data = memoryview(data)

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Nothing is held."""


class LocalFile:
    """A regular file, read by preadv: an unreadable sector is an error here, where mmap would die by SIGBUS.

    Symlinks are followed; whoever must not follow them checks before.
    :raises Missing: when nothing is there. :raises WrongType: when it is a folder, socket or device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._direct = -1
        self.read_bytes = READ_BYTES
        try:
            # O_NONBLOCK: opening a FIFO must not hang; it does nothing to a regular file.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Missing(path=path) from error
        except OSError as error:
            if error.errno == errno.ENXIO and not path.is_file():
                # A socket, or the node of a device that is not there: the medium is well, there just is no file.
                raise WrongType(path=path) from error
            raise Unreadable(path=path, why=error.strerror or str(error)) from error
        import stat as stat_bits

        self.stat = os.fstat(self._fd)
        if not stat_bits.S_ISREG(self.stat.st_mode):
            os.close(self._fd)
            raise WrongType(path=path)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size_bytes(self) -> int:
        return self.stat.st_size

    def fileno(self) -> int:
        return self._fd

    def go_direct(self) -> bool:
        """Read past the page cache from now on, where that can be had: from the medium, and no other program's pages are pushed out."""
        if self._direct < 0:
            self._direct = open_direct(self._fd, os.O_RDONLY)
            if self._direct >= 0:
                self.read_bytes = DIRECT_READ_BYTES
        return self._direct >= 0

    def readinto(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            try:
                if done == 0 and self._direct >= 0 and (done := read_direct(self._direct, buffer, offset)):
                    continue
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                where = (offset + done, offset + len(buffer))
                raise Unreadable(path=self.path, why=error.strerror or str(error), ranges=(where,)) from error
            if got == 0:
                break
            done += got
        return done

    def read_ahead(self, offset: int, length: int) -> None:
        """Ask the kernel to fetch a range into memory meanwhile; returns at once."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def forget_cache(self, offset: int = 0, length: int = 0) -> None:
        """Drop the clean pages of a range (whole file by default), so that the next read comes from the medium."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
