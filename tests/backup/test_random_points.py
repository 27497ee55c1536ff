"""Pulled out, filled up, fallen to read-only: at random points of a backup and a restore, on every file system.

One random point for each file system and fault by default; STEELYARD_LONG=1 tries ten of each, but one of FAT where the kernel has no vfat:
the driver in user space (fusefat) that stands in then ends up in a loop of its own, at some point of ten.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.copies.base import ProvenReader
from steelyard.copies.mount import MountReplica
from steelyard.errors import SteelyardError
from steelyard.report import Report
from steelyard.restore import restore
from steelyard.staging import Partial
from steelyard.verify import verify
from tests.backup.conftest import FILE, Plug, on_drive
from tests.backup.drives import KINDS, Drive
from tests.conftest import World

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
LONG = os.environ.get("STEELYARD_LONG") == "1"
POINTS = 10 if LONG else 1
MIB = 1 << 20
SHUTDOWN = 0x8004587D
"""ioctl of ext4, xfs and btrfs: the file system stops at once, as on a dying drive; nothing more is written."""
PLACES: list[tuple[type, str]] = [
    (ProvenReader, "read_piece"),
    (Partial, "put"),
    (Partial, "fsync"),
    (Partial, "publish"),
    (MountReplica, "seal"),
]


def at_a_random_point(patch: pytest.MonkeyPatch, rng: random.Random, event: Callable[[], object], places: list[tuple[type, str]]) -> str:
    """Let *event* happen once, before a random call at a random place; where, for the message of a failed test."""
    owner, name = rng.choice(places)
    wait, done = rng.randrange(3) if name in {"read_piece", "put"} else 0, []
    real = getattr(owner, name)

    def wrapped(self: object, *arguments: object, **more: object) -> object:
        nonlocal wait
        if wait == 0 and not done:
            done.append(True)
            event()
        wait -= 1
        return real(self, *arguments, **more)

    patch.setattr(owner, name, wrapped)
    return f"{owner.__name__}.{name} #{wait}"


def pull(drive: Drive) -> None:
    drive.unplug(lazy=True)


def fill(drive: Drive) -> None:
    """To the last byte, as another program would."""
    with contextlib.suppress(OSError), (drive.point / "ballast").open("wb") as file:
        for size in (MIB, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\xaa" * size)
                    file.flush()


def fall(drive: Drive) -> None:
    """To read-only, or to nothing at all: whatever this file system does when its drive gives errors."""
    fd = os.open(drive.point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, (2).to_bytes(4, "little"))
    finally:
        os.close(fd)


def in_kernel(name: str) -> bool:
    return name in Path("/proc/filesystems").read_text(encoding="ascii").split()


def can_fall(kind: str) -> bool:
    return kind in {"ext4", "xfs"}


CASES = [(kind, fault) for kind in KINDS for fault in (pull, fill, fall) if fault is not fall or can_fall(kind)]


@pytest.mark.parametrize(("kind", "fault"), CASES if LONG else [case for n, case in enumerate(CASES) if n % 2 == 0 or case[1] is fall])
def test_whatever_happens_to_the_drive_nothing_is_lost_and_the_next_run_finishes(
    held: World, plug: Plug, checkpoint: Path, tmp_path: Path, kind: str, fault: Callable[[Drive], None]
) -> None:
    drive = plug(kind)
    on_drive(held, drive)
    right = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    rng = random.Random(f"{kind} {fault.__name__}")
    for number in range(POINTS if kind != "fat32" or in_kernel("vfat") else 1):
        into = tmp_path / f"back {number}"
        bring = functools.partial(restore, held.site(), "mvdream", source="usb", into=into)
        with pytest.MonkeyPatch.context() as patch:
            if fault is fill:
                # A file system that reserves room can't be surprised by another program; make it one that can't.
                patch.setattr("steelyard.staging.allocate", lambda *_: False)
            where = at_a_random_point(patch, rng, lambda: fault(drive), PLACES)
            code, told = ended(lambda: backup(held.site(), to="usb"))
        assert code in {0, 1, 3}, f"point {number}, {where}: {code}"
        if fault is pull:
            assert not drive.is_plugged, f"point {number}, {where} was never come to: {told}"
            assert list(drive.point.iterdir()) == [], f"point {number}, {where}: the bare mount point stays bare"
        elif fault is fill:
            (drive.point / "ballast").unlink()
        drive.unplug(lazy=fault is fall)
        drive.plug()
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == right for path in drive.point.rglob(FILE)), f"point {number}, {where}"
        done = backup(held.site(), to="usb")
        assert done.exit_code == 0, f"point {number}, {where}: {done.errors}"
        assert {row.outcome for row in verify(held.site(), copy="usb").rows} == {"ok"}, f"point {number}, {where}"
        if fault is not fill:
            with pytest.MonkeyPatch.context() as patch:
                where = at_a_random_point(patch, rng, lambda: fault(drive), PLACES[:2])
                code, _ = ended(bring)
            assert code in {0, 1, 3}, f"point {number}, {where}: {code}"
            assert all(hashlib.sha256(path.read_bytes()).hexdigest() == right for path in into.rglob(FILE)), f"point {number}, {where}"
            drive.unplug(lazy=True)
            drive.plug()
        assert bring().exit_code == 0
        assert hashlib.sha256((into / FILE).read_bytes()).hexdigest() == right
        shutil.rmtree(into)
        shutil.rmtree(drive.point / "models")


def ended(work: Callable[[], Report]) -> tuple[int, list[str]]:
    try:
        report = work()
    except SteelyardError as error:
        return error.exit_code, [error.message]
    return report.exit_code, [error.message for error in report.errors]
