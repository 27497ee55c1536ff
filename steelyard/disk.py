"""The file system under us: what is mounted, what is free, how to write so that it lasts, and its errors as ours."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import humanize

from steelyard.errors import Missing, NoSpace, ReadOnly, Refused, SteelyardError, Unreadable


def gb(size_bytes: float) -> str:
    """A size as people say it: 5.2 GB."""
    return humanize.naturalsize(max(0, size_bytes), format="%.1f")


@contextmanager
def errors_of(place: Path | str) -> Iterator[None]:
    """Map the OSErrors of writing to *place* to ours: no space, read-only, permission, I/O."""
    try:
        yield
    except OSError as error:
        raise as_ours(error, place) from error


def as_ours(error: OSError, place: Path | str) -> SteelyardError:
    """What the file system's *error* is in our words."""
    why = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = free_bytes(Path(place))
        return NoSpace(place=str(place), free=gb(free), need="more bytes", short="some")
    if error.errno == errno.EFBIG:
        return Refused(
            why=f"{place} can't hold a file this large ({why})", hint="FAT32 ends at 4 GiB - 1; format the drive as exFAT or ext4"
        )
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return ReadOnly(place=str(place), why=why)
    if error.errno in {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}:
        return Refused(why=f"{place}: {why}", hint="something else stands in its way there: name another place, or move that away")
    if error.errno in {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ}:
        return Refused(why=f"{place}: {why}", hint="name another place: the file system takes no such path")
    if error.errno == errno.ENOENT:
        return Missing(path=error.filename or str(place))
    if error.errno in {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN}:
        return Unreadable(path=str(place), why=why)
    return Refused(why=f"{place}: {why}")


@contextmanager
def making(path: Path) -> Iterator[None]:
    """errors_of() where *path* is made: what is "not found" then is a place that takes no new names, not a file of the user's."""
    with errors_of(path):
        try:
            yield
        except FileNotFoundError as error:
            raise Refused(
                why=f"{path} can't be made there ({error.strerror})", hint="name a folder on a disk; /proc and the like take no files"
            ) from error


def existing_parent(path: Path) -> Path:
    """The nearest folder above *path* (or itself) that is there; a file system question can be asked of it."""
    path = Path(os.path.abspath(path))
    while not path.exists():
        if path == path.parent:
            return path
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write there (f_bavail: the reserved blocks are not ours)."""
    try:
        seen = os.statvfs(existing_parent(path))
    except OSError:
        return 0
    return seen.f_bavail * seen.f_frsize


def total_bytes(path: Path) -> int:
    seen = os.statvfs(existing_parent(path))
    return seen.f_blocks * seen.f_frsize


def device_of(path: Path) -> int:
    """The device number of the file system that holds *path*, or would."""
    return existing_parent(path).stat().st_dev


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo (proc(5))."""

    point: Path
    source: str
    fstype: str
    options: frozenset[str]
    device: str
    ident: int = 0
    """The kernel's number of this mount; /proc/self/fdinfo shows the same one for every open file on it."""

    @property
    def read_only(self) -> bool:
        # After an ext4 error the kernel shows "emergency_ro" beside "rw" (and statvfs still says writable).
        return bool({"ro", "emergency_ro", "shutdown"} & self.options)


def mounts() -> list[Mount]:
    """What is mounted now, in order of mounting; later ones cover earlier ones. Bind mounts are there, os.path.ismount misses them."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        options = frozenset(fields[5].split(",")) | frozenset(tail[2].split(",") if len(tail) > 2 else ())
        found.append(Mount(Path(_unescape(fields[4])), _unescape(tail[1]), tail[0], options, fields[2], int(fields[0])))
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_at(point: Path) -> Mount | None:
    """The mount whose mount point is *point*, seen through links; None when nothing is mounted just there.

    An automount point (autofs) is first walked into, which mounts it.
    """
    try:
        real = point.resolve()
        if real.is_dir():
            next(os.scandir(real), None)
    except OSError:
        return None
    there = [mount for mount in mounts() if mount.point == real and mount.fstype != "autofs"]
    return there[-1] if there else None


def mount_of_fd(fd: int) -> Mount | None:
    """The mount that an open file lies on, whatever its path leads to by now; None when it is no longer mounted anywhere."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    ident = next((int(line.split()[1]) for line in info.splitlines() if line.startswith("mnt_id:")), -1)
    return next((mount for mount in mounts() if mount.ident == ident), None)


def failure_domain(path: Path) -> str:
    """What dies together with *path*: the whole disk below its partition where the kernel tells, else the file system's device."""
    node = disk_node(path)
    return f"disk {node.name}" if node is not None else f"device {device_of(path)}"


def has_a_head_to_move(path: Path) -> bool:
    """Whether *path* lies on a disk that spins: reading in one place while writing in another costs it dearly."""
    node = disk_node(path)
    if node is not None and node.name.startswith(_VIRTUAL):
        return False
    try:
        return node is not None and (node / "queue" / "rotational").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


_VIRTUAL = ("vd", "xvd", "loop", "nbd", "rbd", "zram")
"""Disks of virtual machines and the like say "rotational" whatever lies below them."""


def disk_node(path: Path) -> Path | None:
    """The disk in /sys that holds *path*, below partitions, LUKS and LVM; None for tmpfs, the network, and file systems over several disks."""
    device = device_of(path)
    try:
        mount = mount_of(path)
        if os.major(device) == 0 and mount is not None and mount.source.startswith("/dev/"):
            device = Path(mount.source).stat().st_rdev  # btrfs numbers its subvolumes itself
        node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
        while (below := sorted((node / "slaves").iterdir()) if (node / "slaves").is_dir() else []) and len(below) == 1:
            node = below[0].resolve(strict=True)
        return node.parent if (node / "partition").exists() else node
    except OSError:
        return None


def mount_of(path: Path) -> Mount | None:
    """The mount that holds *path*."""
    real = existing_parent(path).resolve()
    holding = [mount for mount in mounts() if real.is_relative_to(mount.point)]
    return max(holding, key=lambda mount: len(mount.point.parts), default=None)


def takes_direct(path: Path) -> bool:
    """Whether large reads and writes there go best past the page cache: on a disk of this machine without a head to move.

    There the kernel's own reading ahead is no help that a long read is not, and each page it keeps costs a copy. A file system in user space
    or over the network keeps its own cache, which is not passed by that.
    """
    mount = mount_of(path)
    return mount is not None and not mount.fstype.startswith("fuse") and disk_node(path) is not None and not has_a_head_to_move(path)


def probe_write(folder: Path) -> None:
    """Write, fsync and remove a small file: the only way to know that a file system takes writes.

    :raises ReadOnly, NoSpace, Unreadable:
    """
    probe = folder / f".steelyard-probe-{secrets.token_hex(6)}"
    with errors_of(folder):
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Its name goes first: a kill in the middle then leaves nothing behind.
            probe.unlink(missing_ok=True)
            os.write(fd, b"probe")
            os.fsync(fd)
        finally:
            os.close(fd)


def make_folder(path: Path) -> Path:
    """mkdir -p, with our errors."""
    with making(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


_LIBC = ctypes.CDLL(None, use_errno=True)


def allocate(fd: int, size_bytes: int, place: Path) -> bool:
    """Reserve the room before writing, so that a full disk shows at the start; the file then has its size. False where the file system can't.

    The system call itself: glibc's posix_fallocate falls back to writing into every block (FAT, exFAT, FUSE), which costs as much as the copy.
    :raises NoSpace:
    """
    if size_bytes == 0:
        return True
    with errors_of(place):
        while _LIBC.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) != 0:
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM}:
                return False
            raise OSError(number, os.strerror(number), str(place))
    return True


def read_regular(path: Path) -> bytes:
    """The content of a record. What stands under its name may be anything: a pipe is not waited for, a device not read for ever.

    :raises OSError: also where it is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, fsync_parent: bool = True) -> None:
    """Write *data* under a hidden name, fsync, rename to *path*, fsync the folder: either the old file or the new, never half of one.

    Who writes many files into a folder does the folder's fsync once, at the end (*fsync_parent*).
    """
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")
    with making(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # O_NOFOLLOW: on a shared drive a link planted under this name must not redirect the record.
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            with open(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(fd)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        if fsync_parent:
            fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make a rename in *path* last. Some file systems (FUSE) can't fsync a folder and say EINVAL; there is no more to do then."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(fd)


def publish(partial: Path, final: Path) -> None:
    """Rename a finished, fsynced file to its final name and make that last. Both must lie on one file system."""
    with errors_of(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, final)
        fsync_folder(final.parent)
        if partial.parent != final.parent:
            fsync_folder(partial.parent)
