"""Real file systems in image files, mounted by loop devices: an external drive for a test, unplugged and repaired at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KINDS = ("ext4", "xfs", "btrfs", "exfat", "ntfs", "fat32")
_MKFS: dict[str, list[str]] = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "exfat": ["mkfs.exfat"],
    "ntfs": ["mkfs.ntfs", "-F", "-q", "-f"],
    "fat32": ["mkfs.vfat", "-F", "32"],
}
_MIN_MB = {"xfs": 320, "btrfs": 128}
# Each way is tried in turn: the kernel's own driver, then the one in user space.
_MOUNT: dict[str, list[list[str]]] = {
    "ext4": [["mount", "-t", "ext4"]],
    "xfs": [["mount", "-t", "xfs"]],
    "btrfs": [["mount", "-t", "btrfs"]],
    "exfat": [["mount", "-t", "exfat"], ["mount.exfat-fuse"]],
    "ntfs": [["mount", "-t", "ntfs3"], ["ntfs-3g"]],
    "fat32": [["mount", "-t", "vfat"], ["fusefat", "-s", "-o", "rw+"]],
}

_IN_USER_SPACE = {command[0].encode() for ways in _MOUNT.values() for command in ways if command[0] != "mount"}


class Unavailable(Exception):
    """This machine lacks what the kind needs; the message says what."""


@dataclass
class Drive:
    """One drive: *image* holds its bytes, *point* is where it is mounted when it is plugged in."""

    kind: str
    image: Path
    point: Path
    loop: str = ""

    def make(self, size_mb: int) -> None:
        tool = _MKFS[self.kind][0]
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
        with self.image.open("wb") as file:
            file.truncate(max(size_mb, _MIN_MB.get(self.kind, 0)) << 20)
        self.point.mkdir(parents=True, exist_ok=True)
        self._attach()
        _run([*_MKFS[self.kind], self.loop])

    def _attach(self) -> None:
        try:
            self.loop = _run(["losetup", "-f", "--show", str(self.image)]).strip()
        except RuntimeError as error:
            raise Unavailable(f"no loop device: {error}") from error

    def plug(self, options: str = "") -> None:
        if not self.loop:
            self._attach()
        self._end_drivers()
        reasons = []
        for command in _MOUNT[self.kind]:
            try:
                _run([*command, *(["-o", options] if options else []), self.loop, str(self.point)])
            except (RuntimeError, FileNotFoundError) as error:
                reasons.append(str(error).strip().splitlines()[-1])
                continue
            if self.is_plugged:
                return
        raise Unavailable(f"{self.kind} can't be mounted: {'; '.join(reasons)}")

    @property
    def is_plugged(self) -> bool:
        return any(line.split()[4] == str(self.point) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def unplug(self, *, lazy: bool = False) -> None:
        if self.is_plugged:
            _run(["umount", *(["-l"] if lazy else []), str(self.point)])

    def _end_drivers(self, patience_s: float = 5) -> None:
        """A driver in user space outlives a lazy unmount until its last file is closed: two of them on one image would ruin it."""
        until = time.monotonic() + patience_s
        while still := _drivers_of(self.loop):
            if time.monotonic() > until:
                for pid in still:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def detach(self) -> None:
        """End everything, whatever state the test left it in."""
        while self.is_plugged:
            with contextlib.suppress(RuntimeError):
                _run(["umount", str(self.point)])
                continue
            _run(["umount", "-l", str(self.point)])
        if self.loop:
            self._end_drivers()
            with contextlib.suppress(RuntimeError):
                _run(["losetup", "-d", self.loop])
            self.loop = ""

    def rot(self, needle: bytes, change: bytes) -> int:
        """Change bytes on the medium itself, below the file system: no time, size or inode moves. Returns how many places were hit.

        The drive is unplugged and plugged in again, so that nothing of the old bytes is left in memory.
        """
        self.unplug()
        data = self.image.read_bytes()
        hits = 0
        at = data.find(needle)
        with self.image.open("r+b") as file:
            while at >= 0:
                file.seek(at)
                file.write(change)
                hits += 1
                at = data.find(needle, at + 1)
            file.flush()
            os.fsync(file.fileno())
        # The loop device has a cache of its own.
        _run(["losetup", "-d", self.loop])
        self.loop = ""
        self.plug()
        return hits


@contextmanager
def drive(folder: Path, kind: str, size_mb: int = 100, name: str = "drive") -> Iterator[Drive]:
    """A fresh, formatted, plugged-in drive; unmounted and detached at the end. :raises Unavailable:"""
    # In memory where that can be had: what is tested is what the file systems do, not how fast this disk is.
    shm = Path("/dev/shm")
    images = shm if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30 else folder
    made = Drive(kind, images / f"steelyard-{os.getpid()}-{folder.name}-{name}.img", folder / name)
    try:
        made.make(size_mb)
        made.plug()
        yield made
    finally:
        made.detach()
        made.image.unlink(missing_ok=True)


def _drivers_of(loop: str) -> list[int]:
    """The processes that serve the loop device from user space."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if loop.encode() in words and words[0].rpartition(b"/")[2] in _IN_USER_SPACE:
                    found.append(int(folder.name))
    return found


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
