"""Killed, unplugged, full, fallen to read-only: at any point. Never a wrong file under a final name, and the next run goes on.

STEELYARD_KILLS sets how many random points are tried (20 by default).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.backup import backup
from steelyard.copies.base import ProvenReader
from steelyard.copies.mount import MountReplica
from steelyard.download import download
from steelyard.report import Report
from steelyard.restore import restore
from steelyard.site import Site
from steelyard.staging import Partial
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weights import write_torch_zip
from steelyard.verify import verify
from tests.backup.conftest import FILE, Plug, on_drive
from tests.backup.drives import Drive
from tests.conftest import REPO, World

KILLS = int(os.environ.get("STEELYARD_KILLS", "20"))
MIB = 1 << 20


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A store with one file of 64 MiB, eight pieces; made once."""
    home = tmp_path_factory.mktemp("kills")
    weights = home / "made.pt"
    write_torch_zip(weights, {f"l{n}.weight": ("float32", (1024, 2048), n) for n in range(8)})
    with LoopbackHub() as hub:
        hub.add_revision(REPO, {FILE: weights})
        world = World(home, hub)
        world.configure()
        assert download(world.site()).exit_code == 0
        yield world


def in_child(work: Callable[[], Report], after_s: float) -> int:
    """Run *work* in a forked process, SIGKILL it after a time, and return how many bytes it had put in place."""
    counter = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        put = Partial.put

        def counted(self: Partial, offset: int, data: memoryview | bytes) -> None:
            put(self, offset, data)
            counter[:] = struct.pack("<Q", struct.unpack("<Q", counter[:])[0] + len(data))

        Partial.put = counted  # type: ignore[method-assign]
        code = 70
        try:
            code = work().exit_code
        finally:
            os._exit(code)
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
    return int(struct.unpack("<Q", counter[:])[0])


def all_right(folder: Path, sha256: str) -> bool:
    """Every file under a final name is the right one."""
    return all(hashlib.sha256(path.read_bytes()).hexdigest() == sha256 for path in folder.rglob(FILE))


def time_of(work: Callable[[], Report]) -> float:
    started = time.monotonic()
    assert work().exit_code == 0
    return time.monotonic() - started


def test_a_killed_backup_leaves_no_wrong_file_and_the_next_one_goes_on(filled: World) -> None:
    sha256 = hashlib.sha256(filled.weights.read_bytes()).hexdigest()
    size = filled.weights.stat().st_size
    took = time_of(lambda: backup(filled.site()))
    random.seed(5)
    resumed = 0
    for number in range(KILLS):
        shutil.rmtree(filled.usb)
        written = in_child(lambda: backup(filled.site()), random.uniform(0.0, 1.1) * took)
        assert all_right(filled.usb, sha256), f"kill {number}"
        report = backup(filled.site())
        row = report.rows[0]
        assert (report.exit_code, row.outcome in {"copied", "resumed", "unchanged"}) == (0, True), report.errors
        assert row.facts["bytes_written"] <= size - written + 16 * MIB, f"kill {number}: {written} were written"
        assert all_right(filled.usb, sha256) and list(filled.usb.glob("mvdream/*/SHA256SUMS"))
        resumed += row.outcome == "resumed"
    assert resumed > 0, "some kills must have hit the copying itself"


def test_a_killed_restore_leaves_no_wrong_file_and_the_next_one_goes_on(filled: World, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(filled.weights.read_bytes()).hexdigest()
    size = filled.weights.stat().st_size
    assert backup(filled.site()).exit_code == 0
    into = tmp_path / "back"

    def bring() -> Report:
        return restore(filled.site(), "mvdream", source="usb", into=into)

    took = time_of(bring)
    random.seed(6)
    resumed = 0
    for number in range(KILLS):
        shutil.rmtree(into)
        written = in_child(bring, random.uniform(0.0, 1.1) * took)
        assert all_right(into, sha256), f"kill {number}"
        report = bring()
        row = report.rows[0]
        assert report.exit_code == 0, report.errors
        assert row.facts["bytes_written"] <= size - written + 16 * MIB, f"kill {number}: {written} were written"
        assert [path.name for path in into.rglob("*")] == [FILE] and all_right(into, sha256)
        resumed += row.outcome == "resumed"
    assert resumed > 0


# --- the drive goes away, is full, falls to read-only


def at_piece(monkeypatch: pytest.MonkeyPatch, index: int, event: Callable[[], None]) -> None:
    """Let *event* happen once, when piece *index* is about to be read."""
    read, done = ProvenReader.read_piece, threading.Event()

    def wrapped(self: ProvenReader, at: int, buffer: memoryview) -> memoryview:
        if at == index and not done.is_set():
            done.set()
            event()
        return read(self, at, buffer)

    monkeypatch.setattr(ProvenReader, "read_piece", wrapped)


def backed_up(world: World, plug: Plug) -> Drive:
    """An ext4 drive with one proven snapshot."""
    drive = plug("ext4")
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    assert backup(world.site(), to="usb").exit_code == 0
    return drive


@pytest.mark.root
def test_a_drive_that_goes_before_its_lock_is_taken_leaves_none_in_the_bare_mount_point(
    world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = backed_up(world, plug)
    with monkeypatch.context() as patch:
        real = Site.writing

        def writing(self: Site, *arguments: Any) -> Any:
            drive.unplug(lazy=True)
            return real(self, *arguments)

        patch.setattr(Site, "writing", writing)
        report = backup(world.site(), to="usb")
    assert report.exit_code == 3 and report.errors[0].code == "mount-absent", report.errors
    assert list(drive.point.iterdir()) == [], "the bare mount point stays bare"
    drive.plug()


@pytest.mark.root
def test_a_drive_that_goes_while_it_is_verified_is_absent_and_not_empty(world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = backed_up(world, plug)
    with monkeypatch.context() as patch:
        real = MountReplica.judge

        def judge(self: MountReplica, *arguments: Any) -> Any:
            drive.unplug(lazy=True)
            return real(self, *arguments)

        patch.setattr(MountReplica, "judge", judge)
        report = verify(world.site(), copy="usb")
    assert report.exit_code == 3 and report.errors[0].code == "mount-absent", (report.rows, report.errors)
    drive.plug()
    last = world.site().history.latest("usb", "mvdream", world.site().lock().models["mvdream"].commit, FILE)
    assert last is not None and last.finding.ok, "an absent drive is no finding about its files"


@pytest.mark.root
@pytest.mark.parametrize(("kind", "piece"), [("ext4", 0), ("ext4", 2), ("xfs", 1), ("btrfs", 1), ("ntfs", 1), ("exfat", 2)])
def test_a_lazy_unmount_in_mid_copy_writes_nothing_into_the_bare_mount_point(
    world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch, kind: str, piece: int
) -> None:
    drive = plug(kind)
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    with monkeypatch.context() as patch:
        at_piece(patch, piece, lambda: drive.unplug(lazy=True))
        report = backup(world.site(), to="usb")
    assert report.exit_code == 3 and report.errors[0].code == "mount-absent", report.errors
    assert list(drive.point.iterdir()) == [], "the bare mount point stays bare"
    drive.plug()
    report = backup(world.site(), to="usb")
    assert report.exit_code == 0, report.errors
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}


@pytest.mark.root
def test_another_drive_mounted_in_mid_copy_gets_nothing(world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    right, other = plug(name="drive"), plug(name="other")
    on_drive(world, right)
    assert download(world.site()).exit_code == 0
    other.unplug()
    other.point = right.point

    def swap() -> None:
        right.unplug(lazy=True)
        other.plug()

    with monkeypatch.context() as patch:
        at_piece(patch, 1, swap)
        backup(world.site(), to="usb")
    assert not [path for path in other.point.rglob("*") if path.name not in {"lost+found"} and path.is_file() and path.suffix == ".pt"]
    other.unplug()
    right.plug()
    assert backup(world.site(), to="usb").exit_code == 0


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "exfat"])
def test_a_drive_that_fills_up_in_mid_copy_is_gone_on_with_when_there_is_room(
    world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    drive = plug(kind, 48)
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    ballast = drive.point / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(b"\xaa" * MIB)
                    file.flush()
            except OSError:
                return

    # A file system that reserves room can't be surprised by another program; make it one that can't.
    monkeypatch.setattr("steelyard.staging.allocate", lambda fd, size, place: False)
    with monkeypatch.context() as patch:
        at_piece(patch, 1, fill)
        report = backup(world.site(), to="usb")
    assert (report.exit_code, report.errors[0].code) == (3, "no-space"), report.errors
    assert not list(drive.point.glob(f"models/mvdream/*/{FILE}"))
    ballast.unlink()
    report = backup(world.site(), to="usb")
    assert (report.exit_code, report.rows[0].outcome) == (0, "resumed"), report.errors
    assert report.rows[0].facts["bytes_written"] <= world.weights.stat().st_size
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}


@pytest.mark.root
def test_what_a_killed_copy_has_reserved_is_not_asked_for_twice(world: World, plug: Plug) -> None:
    """21 MB on a drive with 33 MB free: after a kill the partial holds 21 of them, and the run that goes on needs none."""
    drive = plug("ext4", 40)
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    manifest = world.site().manifest("mvdream", world.site().lock().models["mvdream"].commit)
    entry = manifest[FILE]
    replica = world.site().replicas["usb"]
    replica.ready(write=True)
    with Partial(drive.point / "models" / ".steelyard" / "staging", FILE, entry.sha256, entry.size_bytes):
        pass
    seen = os.statvfs(drive.point)
    assert seen.f_bavail * seen.f_frsize < entry.size_bytes
    report = backup(world.site(), to="usb")
    assert report.exit_code == 0, report.errors


@pytest.mark.root
def test_a_drive_that_falls_to_read_only_in_mid_copy_leaves_nothing_half(world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = plug("ext4")
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    drive.unplug()
    drive.plug("errors=remount-ro")
    trigger = Path("/sys/fs/ext4") / Path(drive.loop).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("the kernel has no trigger_fs_error")
    with monkeypatch.context() as patch:
        at_piece(patch, 1, lambda: bool(trigger.write_text("a test")) and None)
        report = backup(world.site(), to="usb")
    assert report.exit_code in {1, 3} and report.errors, report.as_json()
    assert not list(drive.point.glob(f"models/mvdream/*/{FILE}"))
    drive.unplug()
    subprocess.run(["e2fsck", "-fy", drive.loop], capture_output=True, check=False)
    drive.plug()
    report = backup(world.site(), to="usb")
    assert report.exit_code == 0, report.errors
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}


@pytest.mark.root
def test_a_medium_that_takes_bytes_and_gives_back_others_is_found_by_reading_back(
    world: World, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the medium lies, the piece is written again; a medium that goes on lying is named and nothing is published."""
    drive = plug("ext4")
    on_drive(world, drive)
    assert download(world.site()).exit_code == 0
    lies = 2
    write = Partial.write

    def then_lie(self: Partial, offset: int, data: memoryview | bytes) -> None:
        nonlocal lies
        write(self, offset, data)
        if lies > 0 and offset <= 9 * MIB < offset + len(data):
            lies -= 1
            os.pwrite(self.fileno(), b"rot", 9 * MIB)
            os.fsync(self.fileno())

    monkeypatch.setattr(Partial, "write", then_lie)
    report = backup(world.site(), to="usb")
    assert (report.exit_code, "the medium is failing" in report.errors[0].message) == (1, True)
    assert not list(drive.point.glob(f"models/mvdream/*/{FILE}"))
    lies = 1
    assert backup(world.site(), to="usb").exit_code == 0
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}


def test_a_stop_request_ends_a_copy_within_a_piece(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from steelyard.errors import Stopped
    from steelyard.watch import Watch, watched_by

    shutil.rmtree(filled.usb, ignore_errors=True)
    with watched_by(Watch()) as watch:
        at_piece(monkeypatch, 2, watch.stop.set)
        with pytest.raises(Stopped):
            backup(Site.open(filled.config))
    assert not list(filled.usb.glob(f"mvdream/*/{FILE}"))
    assert backup(filled.site()).rows[0].outcome == "resumed"
