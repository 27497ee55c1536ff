"""The drives that /etc/fstab says belong to this machine."""

from __future__ import annotations

from pathlib import Path

from steelyard.disk import mount_at
from steelyard.errors import MountAbsent

FSTAB = Path("/etc/fstab")


def not_mounted(path: Path) -> Path | None:
    """The mount point above *path* (or itself) that fstab names and where nothing is mounted: what is written there fills the drive below it."""
    try:
        lines = [line.split() for line in FSTAB.read_text(encoding="utf-8", errors="replace").splitlines() if not line.startswith("#")]
    except OSError:
        return None
    places = [fields[1].replace("\\040", " ") for fields in lines if len(fields) > 1]
    points = [Path(place) for place in places if place.startswith("/") and place != "/"]
    return next((point for point in points if path.is_relative_to(point) and mount_at(point) is None), None)


def bare(point: Path, path: Path) -> str:
    """Why nothing may be written at *path*, whose mount point not_mounted() found."""
    return f"nothing is mounted at {point}, which {FSTAB} names: {path} would lie on the drive below it"


def refuse_bare(path: Path) -> None:
    """Before anything is written at *path*. :raises MountAbsent: where its drive is not mounted."""
    if point := not_mounted(path):
        raise MountAbsent(why=bare(point, path))
