"""A copy in folders of a file system: the store, the hub cache and mounted replicas differ only in where a file lies."""

from __future__ import annotations

import os
import stat as stat_bits
import tempfile
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

from steelyard.copies.base import Brought, CopyKind, Finding, Look, ProvenReader, corrupt, piece_holds
from steelyard.disk import device_of, errors_of, gb, make_folder
from steelyard.errors import Missing, Range, Unreadable, UnsafeName, WrongType
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import check_pieces, default_threads, digest_source, in_threads, merge_ranges
from steelyard.quarantine import keep_ranges, set_aside
from steelyard.source import LocalFile
from steelyard.staging import Partial
from steelyard.watch import current_watch

WRITERS = 2
"""Pieces in flight while a file is brought in: a kill costs at most these again, 16 MiB."""


class FolderCopy(ABC):
    """Files below *root*; *ours* holds staging and quarantine and must lie on the same file system."""

    name: str
    kind: CopyKind
    root: Path
    ours: Path
    cold_by_default = False

    @abstractmethod
    def path_of(self, manifest: Manifest, path: str) -> Path:
        """Where a file lies or would lie. :raises UnsafeName:"""

    @abstractmethod
    def ready(self, *, write: bool) -> None:
        """:raises Refused: when it can't be used now."""

    def failure_domain(self) -> str:
        return f"device {device_of(self.root)}"

    def where(self, manifest: Manifest, path: str) -> str:
        return str(self.path_of(manifest, path))

    def open(self, manifest: Manifest, entry: FileEntry) -> LocalFile:
        return LocalFile(self.path_of(manifest, entry.path))

    # --- judge

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        try:
            path = self._real_path(manifest, entry)
            source = LocalFile(path)
        except Missing:
            return Finding("missing", proof="presence")
        except (WrongType, UnsafeName) as error:
            return Finding("corrupt", ((0, entry.size_bytes),), "presence", error.message)
        except Unreadable as error:
            return Finding("unreadable", ((0, entry.size_bytes),), "open", str(error.facts.get("why")))
        with source:
            if look.depth == "quick":
                return _quick(source, entry, recorded)
            cold = self.cold_by_default if look.cold is None else look.cold
            return _by_pieces(source, entry, cold=cold)

    def _real_path(self, manifest: Manifest, entry: FileEntry) -> Path:
        """The path of a file, where no link on it leads out of the root. :raises Missing, UnsafeName:"""
        path = self.path_of(manifest, entry.path)
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Missing(path=str(path)) from error
        except (OSError, RuntimeError) as error:
            raise Unreadable(path=str(path), why=str(error)) from error
        if not real.is_relative_to(self.root.resolve()):
            raise UnsafeName(name=entry.path, root=str(self.root), why=f"a link leads to {real}")
        return path

    # --- bring

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        final = self.path_of(manifest, entry.path)
        if reader.pieces_are_trusted and self._is_there(manifest, entry, final):
            return Brought("unchanged", 0)
        with Partial(self.ours / "staging", entry.path, entry.sha256, entry.size_bytes) as partial:
            resumed = bool(partial.have())
            written = self._fill(partial, entry, reader)
            partial.publish(final, aside=lambda old: self._make_way(old, entry))
        return Brought("resumed" if resumed else "copied", written)

    def _is_there(self, manifest: Manifest, entry: FileEntry, final: Path) -> bool:
        """Whether the very content stands under the final name: it is then no evidence to be set aside, and nothing is to be written."""
        try:
            seen = final.lstat()
        except OSError:
            return False
        return stat_bits.S_ISREG(seen.st_mode) and seen.st_size == entry.size_bytes and self.judge(manifest, entry, Look()).ok

    def _make_way(self, old: Path, entry: FileEntry) -> None:
        """What stands where a proven file will go: a link is dropped, a file that is not the same content is evidence and kept."""
        if old.is_symlink():
            return
        if old.is_dir():
            raise WrongType(path=str(old), hint="a folder stands where a file belongs; move it away")
        set_aside(self.ours / "quarantine", old, f"replaced by {entry.sha256}")

    def _fill(self, partial: Partial, entry: FileEntry, reader: ProvenReader) -> int:
        """Write what is missing, make it last, read it back from the medium; a piece that did not survive is written once more."""
        watch = current_watch()
        written = self._write_pieces(partial, entry, reader, watch.stop)
        for attempt in (1, 2):
            partial.fsync()
            bad = _read_back(partial, entry, reader.pieces_are_trusted)
            if not bad:
                return written
            partial.drop(bad)
            if attempt == 1:
                written += self._write_pieces(partial, entry, reader, watch.stop)
        raise corrupt(partial.path, bad, f"{self.name} does not give back what was written; the medium is failing")

    def _write_pieces(self, partial: Partial, entry: FileEntry, reader: ProvenReader, stop: threading.Event) -> int:
        have = partial.have()
        todo = [index for index, (start, end) in enumerate(entry.ranges) if not any(lo <= start and end <= hi for lo, hi in have)]
        watch = current_watch()
        written: list[int] = []
        with watch.job(f"{entry.path} → {self.name}", entry.size_bytes) as job:
            watch.advance(job, entry.size_bytes - sum(entry.ranges[i][1] - entry.ranges[i][0] for i in todo))
            local = threading.local()

            def copy(index: int) -> None:
                if not hasattr(local, "buffer"):
                    local.buffer = memoryview(bytearray(min(entry.piece_bytes, entry.size_bytes)))
                view = reader.read_piece(index, local.buffer)
                partial.put(entry.ranges[index][0], view)
                written.append(len(view))
                watch.advance(job, len(view))

            in_threads(copy, todo, threads=WRITERS, stop=stop)
        return sum(written)

    # --- mend

    def mend(self, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader) -> int:
        path = self.path_of(manifest, entry.path)
        if finding.verdict == "missing" or not _mendable_in_place(path):
            before = dict(reader.used_bytes)
            self.bring(manifest, entry, reader)
            return sum(reader.used_bytes.values()) - sum(before.values())
        bad = [i for i, (start, end) in enumerate(entry.ranges) if any(start < hi and lo < end for lo, hi in finding.bad_ranges)]
        with errors_of(self.ours), tempfile.TemporaryFile(dir=make_folder(self.ours / "staging")) as spool:
            # Everything is fetched and proven before the first byte of the file is touched: a piece that is good nowhere leaves it as it is.
            buffer = memoryview(bytearray(min(entry.piece_bytes, max(entry.size_bytes, 1))))
            for index in bad:
                current_watch().check()
                spool.write(reader.read_piece(index, buffer))
            moved = spool.tell()
            spool.seek(0)
            keep_ranges(self.ours / "quarantine", path, finding.bad_ranges, f"{finding.verdict}: {finding.why or 'digest differs'}")
            _overwrite(path, spool, [entry.ranges[index] for index in bad], entry.size_bytes)
        with LocalFile(path) as source:
            still = [entry.ranges[index] for index in bad if not piece_holds(source, entry, index)]
            if not still:
                found = digest_source(source, stop=current_watch().stop)
                if found.sha256 != entry.sha256:
                    still = [(0, entry.size_bytes)]
        if still:
            raise corrupt(path, still, f"{self.name} does not give back what was written; the medium is failing")
        return moved

    @abstractmethod
    def commits(self, model: str) -> list[str]: ...

    @abstractmethod
    def manifest(self, model: str, commit: str) -> Manifest | None: ...

    @abstractmethod
    def seal(self, manifest: Manifest) -> None: ...

    def strays(self, manifest: Manifest) -> list[str]:
        return []


def _overwrite(path: Path, spool: IO[bytes], ranges: list[Range], size_bytes: int) -> None:
    """Put the bytes of *spool* into *ranges* of the file, cut or grow it to its size, and make that last."""
    with errors_of(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start, end in ranges:
                at = start
                while at < end:
                    view = memoryview(spool.read(min(1 << 20, end - at)))
                    while len(view):
                        done = os.pwrite(fd, view, at)
                        at, view = at + done, view[done:]
            if os.fstat(fd).st_size != size_bytes:
                os.ftruncate(fd, size_bytes)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _mendable_in_place(path: Path) -> bool:
    """A regular file under one name only: bytes behind a second name are not ours to change."""
    try:
        seen = path.lstat()
    except OSError:
        return False
    return stat_bits.S_ISREG(seen.st_mode) and seen.st_nlink == 1


def stat_of(seen: os.stat_result) -> str:
    """What identifies a file's state without reading it. ctime can't be set back by a program, mtime can."""
    return f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"


def _quick(source: LocalFile, entry: FileEntry, recorded: Finding | None) -> Finding:
    """Size, mtime and inode against the last look. Never better than that look's verdict."""
    now = stat_of(source.stat)
    if source.size_bytes != entry.size_bytes:
        return Finding("corrupt", _size_ranges(entry, source.size_bytes), "stat", _size_why(entry, source.size_bytes), stat=now)
    if recorded is None or recorded.stat != now:
        why = "never proven here" if recorded is None else "its time or inode changed since it was last proven"
        return Finding("unverified", proof="stat", why=why, stat=now)
    return Finding(recorded.verdict, recorded.bad_ranges, "stat", "size, mtime and inode are as at the last proof", stat=now)


def _by_pieces(source: LocalFile, entry: FileEntry, *, cold: bool) -> Finding:
    watch = current_watch()
    if cold:
        source.forget_cache()
    in_memory = not cold and _is_cached(source)
    with watch.job(f"verify {entry.path}", entry.size_bytes) as job:
        found = check_pieces(
            source,
            entry.size_bytes,
            entry.piece_bytes,
            entry.pieces,
            stop=watch.stop,
            # From a medium one sequential reader is fastest (measured: two were slower); from memory every core helps.
            threads=default_threads() if in_memory else 1,
            on_bytes=lambda count: watch.advance(job, count),
        )
    now = os.fstat(source.fileno())
    stat = stat_of(now)
    if stat != stat_of(source.stat):
        return Finding("unverified", proof="pieces", why="it changed while it was being read", bytes_read=entry.size_bytes, stat=stat)
    how = f"pieces ({'from the medium' if cold else 'in memory' if in_memory else 'one reader'})"
    bad: list[Range] = list(found.bad)
    if source.size_bytes > entry.size_bytes:
        bad.append((entry.size_bytes, source.size_bytes))
    if bad:
        ranges = merge_ranges([*bad, *found.unreadable])
        return Finding("corrupt", ranges, how, _size_why(entry, source.size_bytes) or _range_why(ranges), entry.size_bytes, stat)
    if found.unreadable:
        return Finding("unreadable", found.unreadable, how, found.why_unreadable, entry.size_bytes, stat)
    return Finding("ok", proof=how, bytes_read=entry.size_bytes, stat=stat)


def _size_ranges(entry: FileEntry, size: int) -> tuple[Range, ...]:
    if size > entry.size_bytes:
        return ((entry.size_bytes, size),)
    return ((size // entry.piece_bytes * entry.piece_bytes, entry.size_bytes),)


def _size_why(entry: FileEntry, size: int) -> str:
    if size == entry.size_bytes:
        return ""
    return f"it has {size} bytes, {entry.size_bytes} are right"


def _range_why(ranges: tuple[Range, ...]) -> str:
    total = sum(end - start for start, end in ranges)
    return f"{gb(total)} in {len(ranges)} range{'s' if len(ranges) > 1 else ''} differ from the recorded digests"


def _is_cached(source: LocalFile) -> bool:
    """Whether the file lies in the page cache, by asking for single bytes that must not wait for the medium."""
    probes, there = 16, 0
    for index in range(probes):
        try:
            os.preadv(source.fileno(), [bytearray(1)], source.size_bytes * index // probes, os.RWF_NOWAIT)
            there += 1
        except BlockingIOError:
            pass
        except OSError:
            return True  # the file system can't tell (FUSE, old kernels); treat it as memory
    return there > probes * 3 // 4


def _read_back(partial: Partial, entry: FileEntry, pieces_are_trusted: bool) -> list[Range]:
    """Read a written file from the medium and judge every piece; the ranges that did not survive.

    Where the pieces come from a record of somebody else (a replica's manifest), the whole SHA-256 is proven in the same pass.
    :raises Corrupt: when the pieces hold but the SHA-256 does not: the record contradicts itself.
    """
    os.posix_fadvise(partial.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    watch = current_watch()
    with LocalFile(partial.path) as source, watch.job(f"read back {entry.path}", entry.size_bytes) as job:

        def on_bytes(count: int) -> None:
            watch.advance(job, count)

        if pieces_are_trusted:
            found = check_pieces(source, entry.size_bytes, entry.piece_bytes, entry.pieces, stop=watch.stop, threads=1, on_bytes=on_bytes)
            return list(merge_ranges([*found.bad, *found.unreadable]))
        digests = digest_source(source, stop=watch.stop, on_bytes=on_bytes, piece_bytes=entry.piece_bytes)
    bad = [where for where, one, other in zip(entry.ranges, digests.pieces, entry.pieces, strict=True) if one != other]
    if not bad and digests.sha256 != entry.sha256:
        partial.discard()
        raise corrupt(entry.path, [(0, entry.size_bytes)], "its pieces hold, but together they are not the SHA-256 that was agreed on")
    return bad
