"""A file being written in place under a hidden name, with a journal of the blocks that are on it.

The journal is what makes a killed download or copy go on where it was: after each block of up to a piece is written, a record with its place and
CRC-64 follows. Within one boot the page cache survives a SIGKILL, so the records hold; after a reboot (or another drive under the same path)
every block is read again and judged by its CRC first. Whatever it says, the whole file is proven before it is published.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from steelyard.direct import DIRECT_FROM_BYTES, open_direct, write_direct
from steelyard.disk import allocate, errors_of, free_bytes, fsync_folder, gb, make_folder, publish, read_regular, takes_direct
from steelyard.errors import Busy, NoSpace, Range, Stopped
from steelyard.names import slug
from steelyard.pieces import MIB, merge_ranges

_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_WAIT = 7  # wait before, write, wait after
_RECORD = struct.Struct("<QIQI")
BLOCK_BYTES = MIB


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


@dataclass(frozen=True)
class Block:
    start: int
    length: int
    crc64: int

    @property
    def end(self) -> int:
        return self.start + self.length


def partial_paths(folder: Path, name: str, identity: str) -> tuple[Path, Path]:
    """Where the partial of the content *identity* (a digest) lies, and its journal; *name* only makes it readable."""
    stem = f"{slug(Path(name).name)[:60]}-{identity[:20]}"
    return folder / f"{stem}.partial", folder / f"{stem}.journal"


def sweep_journals(folder: Path) -> None:
    """Remove journals whose partial is gone: what a kill between the rename and the end leaves behind. Whoever calls holds the copy's lock."""
    for journal in folder.glob("*.journal") if folder.is_dir() else ():
        if not journal.with_suffix(".partial").exists():
            journal.unlink(missing_ok=True)


def reserved_bytes(folder: Path, name: str, identity: str) -> int:
    """What a partial that a killed run left holds of the disk already: the plan that goes on with it needs that much less."""
    try:
        return partial_paths(folder, name, identity)[0].lstat().st_blocks * 512
    except OSError:
        return 0


class Partial:
    """The staging file of one content (*identity*, *size_bytes*) in *folder*. Use as a context manager; leaving it keeps what is there.

    :raises NoSpace, ReadOnly: when the room can't be reserved.
    """

    def __init__(self, folder: Path, name: str, identity: str, size_bytes: int) -> None:
        from awscrt.checksums import crc64nvme

        self._crc_of = crc64nvme
        self.folder = make_folder(folder)
        self.path, self.journal = partial_paths(folder, name, identity)
        self.size_bytes = size_bytes
        self._identity = identity
        self._log = -1
        self._direct = -1
        self._lock = threading.Lock()
        self.changed = threading.Condition(self._lock)
        self._blocks: list[Block] = []
        self._frontier = 0
        self._ahead: dict[int, int] = {}
        with errors_of(self.path):
            # Not truncated: a partial that lies there is what we go on with. O_NOFOLLOW: a planted link must not redirect our writes.
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            self._only_writer()
            self._resume()
            # Where the room can't be reserved (FAT, exFAT, FUSE) the file grows as it is written: setting its size there writes zeros, or nothing.
            self.reserved = self._reserve()
            """Whether the room is ours and the file has its size; else it is best written in order."""
            with errors_of(self.path):
                if os.fstat(self._fd).st_size > size_bytes:
                    os.ftruncate(self._fd, size_bytes)
            if self.reserved and size_bytes >= DIRECT_FROM_BYTES and takes_direct(self.path):
                self._direct = open_direct(self._fd, os.O_WRONLY)
        except BaseException:
            os.close(self._fd)
            raise

    def _only_writer(self) -> None:
        """One process at a time; two models may hold the same content, and so the same staging file. :raises Busy:"""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(what=self.path.name, holder="another run that brings the same content") from error
        except OSError:
            return  # a file system without locks: the run's own lock is the guard there

    def _reserve(self) -> bool:
        """:raises NoSpace: when there is no room for the rest; what was reserved in vain is given back."""
        try:
            return allocate(self._fd, self.size_bytes, self.path)
        except NoSpace as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, max((block.end for block in self._blocks), default=0))
            need, free = self.size_bytes - os.fstat(self._fd).st_blocks * 512, free_bytes(self.path)
            raise NoSpace(place=str(self.folder), free=gb(free), need=gb(need), short=gb(need - free), short_bytes=need - free) from error

    # --- what is there

    @property
    def frontier(self) -> int:
        """Everything before this offset is there."""
        return self._frontier

    def have(self) -> tuple[Range, ...]:
        with self._lock:
            return merge_ranges((block.start, block.end) for block in self._blocks)

    def missing(self) -> tuple[Range, ...]:
        gaps, at = [], 0
        for start, end in self.have():
            if start > at:
                gaps.append((at, start))
            at = max(at, end)
        if at < self.size_bytes:
            gaps.append((at, self.size_bytes))
        return tuple(gaps)

    # --- writing

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Put *data* in place; it counts only once it is recorded."""
        view = memoryview(data)
        with errors_of(self.path):
            if self._direct >= 0:
                done = write_direct(self._direct, view, offset)
                offset, view = offset + done, view[done:]
            while len(view):
                done = os.pwrite(self._fd, view, offset)
                offset += done
                view = view[done:]

    def record(self, start: int, length: int, crc64: int) -> None:
        """Note that a block is written. Safe from any thread."""
        if length == 0:
            return
        block = Block(start, length, crc64)
        with self._lock:
            with errors_of(self.journal):
                os.write(self._log, _pack(block))
            self._add(block)
            self.changed.notify_all()

    def put(self, offset: int, data: memoryview | bytes) -> None:
        """Write and record in one go."""
        self.write(offset, data)
        self.record(offset, len(data), self._crc_of(data))

    def _add(self, block: Block) -> None:
        self._blocks.append(block)
        self._ahead[block.start] = max(block.end, self._ahead.get(block.start, 0))
        while (end := self._ahead.pop(self._frontier, None)) is not None:
            self._frontier = end

    # --- going on

    def _header(self) -> bytes:
        seen = os.fstat(self._fd)
        head = {"identity": self._identity, "size_bytes": self.size_bytes, "boot": boot_id(), "device": seen.st_dev, "inode": seen.st_ino}
        return json.dumps(head, sort_keys=True).encode() + b"\n"

    def _resume(self) -> None:
        blocks: list[Block] = []
        trusted = False
        try:
            data = read_regular(self.journal)
            line, _, records = data.partition(b"\n")
            head = json.loads(line)
            if head["identity"] == self._identity and head["size_bytes"] == self.size_bytes:
                blocks = _unpack(records, self.size_bytes)
                trusted = line + b"\n" == self._header()
        except (OSError, ValueError, KeyError, TypeError):
            blocks = []
        if blocks and not trusted:
            blocks = [block for block in blocks if self._holds(block)]
        self._rewrite(blocks)

    def _holds(self, block: Block) -> bool:
        buffer = bytearray(min(block.length, BLOCK_BYTES))
        crc, at = 0, block.start
        while at < block.end:
            view = memoryview(buffer)[: min(len(buffer), block.end - at)]
            try:
                got = os.preadv(self._fd, [view], at)
            except OSError:
                return False
            if got == 0:
                return False
            crc = self._crc_of(view[:got], crc)
            at += got
        return bool(crc == block.crc64)

    def _rewrite(self, blocks: Sequence[Block]) -> None:
        """Begin the journal anew with *blocks*, atomically."""
        fresh = self.journal.with_suffix(".journal.new")
        with errors_of(self.journal):
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            os.write(fd, self._header() + b"".join(map(_pack, blocks)))
            os.replace(fresh, self.journal)
        if self._log >= 0:
            os.close(self._log)
        self._log = fd
        self._blocks, self._frontier, self._ahead = [], 0, {}
        for block in sorted(blocks, key=lambda one: one.start):
            self._add(block)
        # Blocks may begin before the frontier where a piece was fetched twice; the frontier is the first gap whatever their borders.
        self._frontier = next((end for start, end in merge_ranges((b.start, b.end) for b in blocks) if start == 0), 0)

    def drop(self, ranges: Sequence[Range]) -> None:
        """Forget the blocks that touch *ranges*: what lies there turned out to be wrong."""
        with self._lock:
            self._rewrite([b for b in self._blocks if not any(b.start < end and start < b.end for start, end in ranges)])

    def drop_what_does_not_hold(self, stop: threading.Event) -> int:
        """Read every block again and forget those whose CRC differs; how many bytes were forgotten."""
        bad = []
        for block in list(self._blocks):
            if stop.is_set():
                raise Stopped()
            if not self._holds(block):
                bad.append((block.start, block.end))
        if bad:
            self.drop(bad)
        return sum(end - start for start, end in bad)

    # --- the end

    def start_writing(self, start: int, length: int) -> None:
        """Ask the kernel to begin to write a range to the medium, so that fsync finds little left to do. Never waits for it, never fails."""
        if (call := _sync_file_range()) is not None:
            call(self._fd, start, length, _SYNC_FILE_RANGE_WRITE)

    def settle(self, start: int, length: int) -> bool:
        """Wait until a range is on the medium and drop it from memory, so that reading it asks the medium. False where that can't be told.

        The file is not safe by that: only fsync makes its size and place last.
        """
        if (call := _sync_file_range()) is None or call(self._fd, start, length, _SYNC_FILE_RANGE_WAIT) != 0:
            return False
        os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)
        return True

    def fsync(self) -> None:
        with errors_of(self.path):
            os.fsync(self._fd)

    def fileno(self) -> int:
        return self._fd

    def publish(self, final: Path, aside: Callable[[Path], None] | None = None) -> None:
        """fsync, move what stands at *final* aside, rename to *final*, fsync both folders, end the journal."""
        self.fsync()
        if aside is not None and (final.exists() or final.is_symlink()):
            aside(final)
        publish(self.path, final)
        self._drop_journal()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._drop_journal()
        fsync_folder(self.folder)

    def _drop_journal(self) -> None:
        """Closed first: removed while open, FUSE would leave it under a hidden name."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._log >= 0:
                os.close(self._log)
                self._log = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2), which Python has no name for; None where the C library has none."""
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    found: Callable[[int, int, int, int], int] = call
    return found


def _pack(block: Block) -> bytes:
    import zlib

    body = struct.pack("<QIQ", block.start, block.length, block.crc64)
    return body + struct.pack("<I", zlib.crc32(body))


def _unpack(data: bytes, size_bytes: int) -> list[Block]:
    """The records up to the first torn one; records beyond the file are dropped."""
    import zlib

    blocks = []
    for at in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
        start, length, crc64, check = _RECORD.unpack_from(data, at)
        if zlib.crc32(data[at : at + 20]) != check:
            break
        if start + length <= size_bytes:
            blocks.append(Block(start, length, crc64))
    return blocks
