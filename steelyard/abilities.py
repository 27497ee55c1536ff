"""What a file system can do, found out by doing it: its name in the mount table says little (everything behind FUSE is "fuseblk")."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steelyard.disk import allocate, errors_of, gb, make_folder, mount_of
from steelyard.errors import Refused

FICLONE = 0x40049409
"""ioctl_ficlone(2): share the extents of another file."""
FOUR_GIB = 1 << 32
_ODD = frozenset('<>:"|?*')
"""What Windows file systems and some drivers for them refuse in a name. A backslash never comes this far (names.check_name)."""


@dataclass(frozen=True)
class Abilities:
    """*time_grain_ns*: the step in which modification times are kept. *large_files*: beyond 4 GiB - 1; None where it can't be told cheaply."""

    hard_links: bool
    symlinks: bool
    reflink: bool
    case_sensitive: bool
    odd_names: bool
    large_files: bool | None
    time_grain_ns: int
    modes: bool
    holes: bool
    reserves_room: bool
    folder_fsync: bool


def probe(folder: Path) -> Abilities:
    """Try everything in a folder of our own below *folder*, which is gone afterwards. :raises ReadOnly, NoSpace, Unreadable:"""
    with _scratch(folder) as here:
        one = here / "one"
        one.write_bytes(b"x" * 8192)
        return Abilities(
            hard_links=_works(lambda: os.link(one, here / "hard")),
            symlinks=_works(lambda: (here / "soft").symlink_to("one")),
            reflink=_works(lambda: reflink(one, here / "clone")),
            case_sensitive=not (here / "ONE").exists(),
            odd_names=_works(lambda: (here / "a:b?c").write_bytes(b"")),
            large_files=_takes_large(here / "large"),
            time_grain_ns=_time_grain(one),
            modes=_keeps_modes(one),
            holes=_keeps_holes(here / "holes"),
            reserves_room=_reserves(here / "room"),
            folder_fsync=_works(lambda: _fsync(here)),
        )


def refuse_what_does_not_fit(folder: Path, who: str, sizes: dict[str, int]) -> None:
    """Ask the file system of *folder* whether it can hold files of these names and sizes, by trying the doubtful ones.

    :raises Refused: naming the first that it can't; nothing stays there.
    """
    large = [path for path, size in sizes.items() if size >= FOUR_GIB]
    odd = sorted({part for path in sizes for part in path.split("/") if _ODD & set(part) or not part.isascii()})
    if not large and not odd:
        return
    with _scratch(folder) as here:
        if large and _takes_large(here / "large", at_any_cost=True) is False:
            hint = "format the drive as exFAT or ext4, or use another replica"
            raise Refused(why=f"{who} can't hold {large[0]} ({gb(sizes[large[0]])}): its file system ends at 4 GiB - 1 a file", hint=hint)
        for name in odd:
            if not _works(partial((here / name).write_bytes, b"")):
                hint = "format the drive as ext4, xfs or btrfs, or use another replica"
                raise Refused(why=f"{who} can't hold the name {name!r}: its file system does not allow it", hint=hint)


def reflink(source: Path, target: Path) -> None:
    """Make *target* share the bytes of *source* (btrfs, xfs); a change of one then leaves the other alone. :raises OSError:"""
    with source.open("rb") as old:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.ioctl(fd, FICLONE, old.fileno())
            os.fsync(fd)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    here = folder / f".steelyard-probe-{secrets.token_hex(6)}"
    try:
        with errors_of(folder):
            make_folder(here)
            yield here
    finally:
        shutil.rmtree(here, ignore_errors=True)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, UnicodeError):
        return False
    return True


def _takes_large(path: Path, *, at_any_cost: bool = False) -> bool | None:
    """The kernel's own file systems refuse to seek beyond their largest file. Behind FUSE the drive's first sector names the format.

    *at_any_cost*: where even that can't be read make a file that long, which may write 4 GiB of zeros.
    """
    with path.open("wb") as file:
        try:
            os.lseek(file.fileno(), FOUR_GIB + 1, os.SEEK_SET)
        except OSError:
            return False
        mount = mount_of(path)
        if mount is not None and not mount.fstype.startswith("fuse"):
            return True
        told = _format_of(mount.source) if mount is not None else None
        if told is not None or not at_any_cost:
            return told
        try:
            os.ftruncate(file.fileno(), FOUR_GIB + 1)
        except OSError as error:
            return None if error.errno in {errno.ENOSPC, errno.EDQUOT} else False
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)
    return None


def _format_of(device: str) -> bool | None:
    """Whether the format on *device* takes files beyond 4 GiB, by its boot sector (needs root); None for one we don't know."""
    try:
        with open(device, "rb") as drive:
            sector = drive.read(512)
    except OSError:
        return None
    if sector[3:11] in {b"EXFAT   ", b"NTFS    "}:
        return True
    return False if sector[82:85] == b"FAT" or sector[54:57] == b"FAT" else None


def _time_grain(path: Path) -> int:
    """Set a time with every digit and see which come back [ns]."""
    asked = 1_700_000_001_123_456_789
    os.utime(path, ns=(asked, asked))
    kept = path.stat().st_mtime_ns
    return next((grain for grain in (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000) if kept == asked // grain * grain), 2_000_000_000)


def _keeps_modes(path: Path) -> bool:
    try:
        seen = []
        for mode in (0o640, 0o644):
            path.chmod(mode)
            seen.append(path.stat().st_mode & 0o777)
    except OSError:
        return False
    return seen == [0o640, 0o644]


def _keeps_holes(path: Path) -> bool:
    try:
        with path.open("wb") as file:
            os.ftruncate(file.fileno(), 1 << 20)
            os.fsync(file.fileno())
            seen = os.fstat(file.fileno())
    except OSError:
        return False
    return seen.st_size == 1 << 20 and seen.st_blocks * 512 < 1 << 20


def _reserves(path: Path) -> bool:
    with path.open("wb") as file:
        return allocate(file.fileno(), 1 << 20, path)


def _fsync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
