"""The file systems that hold anything of ours: how full, how many inodes, what is reserved, and whether the kernel or the drive tells of errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steelyard.config import MountConfig
from steelyard.disk import Mount, disk_node, existing_parent, mount_of
from steelyard.errors import SteelyardError
from steelyard.site import Site

SMART_S = 10.0


@dataclass(frozen=True)
class Place:
    """A folder of ours. *name*: models, hf_home, outputs, or a replica's."""

    name: str
    path: Path


@dataclass(frozen=True)
class FileSystem:
    """One mounted file system. *point* names it; bytes are as statvfs has them: *free_bytes* is what an ordinary user may still write."""

    point: str
    places: tuple[Place, ...]
    kind: str
    device: int
    total_bytes: int
    free_bytes: int
    reserved_bytes: int
    """Free for root only."""
    inodes: int
    """0 where the file system has no fixed number."""
    inodes_free: int
    read_only: bool = False

    @property
    def inodes_free_percent(self) -> float | None:
        return round(100 * self.inodes_free / self.inodes, 1) if self.inodes else None

    def as_json(self) -> dict[str, Any]:
        return {
            "point": self.point,
            "places": {place.name: str(place.path) for place in self.places},
            "kind": self.kind,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "used_bytes": max(0, self.total_bytes - self.free_bytes - self.reserved_bytes),
            "reserved_bytes": self.reserved_bytes,
            "inodes_free_percent": self.inodes_free_percent,
            "read_only": self.read_only,
        }


def places(site: Site) -> Iterator[Place]:
    """Where anything of ours lies or would lie; a replica's drive only while it is there."""
    yield Place("models", site.config.store.models)
    yield Place("hf_home", site.config.store.hf_home)
    if site.config.store.outputs is not None:
        yield Place("outputs", site.config.store.outputs)
    for name, settings in site.config.replicas.items():
        if isinstance(settings, MountConfig):
            try:
                site.replicas[name].ready(write=False)
            except SteelyardError:
                continue
            yield Place(name, settings.path)


def file_systems(site: Site) -> list[FileSystem]:
    """Each once, however many places it holds; in the order of the places."""
    together: dict[int, list[tuple[Place, Path]]] = {}
    for place in places(site):
        there = existing_parent(place.path)
        try:
            together.setdefault(there.stat().st_dev, []).append((place, there))
        except OSError:
            continue
    return [seen for device, found in together.items() if (seen := _look(device, found)) is not None]


def _look(device: int, found: list[tuple[Place, Path]]) -> FileSystem | None:
    there = found[0][1]
    try:
        seen = os.statvfs(there)
    except OSError:
        return None
    mount: Mount | None = mount_of(there)
    return FileSystem(
        str(mount.point) if mount else str(there),
        tuple(place for place, _ in found),
        mount.fstype if mount else "",
        device,
        seen.f_blocks * seen.f_frsize,
        seen.f_bavail * seen.f_frsize,
        max(0, seen.f_bfree - seen.f_bavail) * seen.f_frsize,
        seen.f_files,
        seen.f_favail,
        bool(mount and mount.read_only),
    )


# --- does it tell of errors

Smart = Literal["passed", "failing", "unknown"]


@dataclass(frozen=True)
class Health:
    """*io_errors*: what the kernel has counted for the disk and its file system since it was made or attached; None where nothing counts."""

    io_errors: int | None
    smart: Smart


def health(path: Path, *, ask_drive: bool = True) -> Health:
    """What the kernel counts, and with *ask_drive* what the drive says of itself (smartctl, where it is installed and allowed)."""
    node = disk_node(path)
    counts = [count for source in _counters(path, node) if (count := _number(source)) is not None]
    return Health(sum(counts) if counts else None, _smart(node) if ask_drive and node is not None else "unknown")


def _counters(path: Path, node: Path | None) -> Iterator[Path]:
    if node is not None:
        yield node / "device" / "ioerr_cnt"  # SCSI and SATA, in hex
    mount = mount_of(path)
    if mount is not None and mount.source.startswith("/dev/"):
        partition = Path(mount.source).resolve().name
        yield Path("/sys/fs/ext4") / partition / "errors_count"
        if mount.fstype == "btrfs":
            yield from Path("/sys/fs/btrfs").glob("*/devinfo/*/error_stats")


def _number(source: Path) -> int | None:
    try:
        text = source.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    try:
        if source.name == "error_stats":  # "write_errs 0" and so on, a line each
            return sum(int(line.split()[1]) for line in text.splitlines() if line.strip())
        return int(text, 0)
    except (ValueError, IndexError):
        return None


def _smart(node: Path) -> Smart:
    program = shutil.which("smartctl", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return "unknown"
    try:
        done = subprocess.run(
            [program, "--json", "--health", f"/dev/{node.name}"],
            capture_output=True,
            timeout=SMART_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        told = json.loads(done.stdout)["smart_status"]["passed"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return "unknown"
    return "passed" if told is True else "failing" if told is False else "unknown"
