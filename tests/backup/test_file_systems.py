"""The same promises on every kind of drive a user may plug in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.copies.base import Look
from steelyard.restore import restore
from steelyard.target import target
from steelyard.verify import verify
from tests.backup.conftest import FILE, Plug, on_drive
from tests.backup.drives import KINDS
from tests.conftest import World

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", KINDS)
def test_backup_verify_restore_and_by_hand_on_every_file_system(
    held: World, plug: Plug, checkpoint: Path, kind: str, tmp_path: Path
) -> None:
    drive = plug(kind)
    on_drive(held, drive)
    right = checkpoint.read_bytes()

    done = backup(held.site())
    assert (done.exit_code, [row.outcome for row in done.rows]) == (0, ["copied"]), done.errors
    assert [row.outcome for row in backup(held.site()).rows] == ["unchanged"]
    drive.unplug()
    drive.plug()
    assert backup(held.site()).exit_code == 0
    judged = verify(held.site(), copy="usb", look=Look(depth="deep"))
    assert {row.outcome for row in judged.rows} == {"ok"}, judged.as_json()

    back = restore(held.site(), "mvdream", source="usb", into=tmp_path / "back")
    assert (back.exit_code, back.rows[0].facts["sources"]) == (0, ["usb"])
    assert (tmp_path / "back" / FILE).read_bytes() == right

    snapshot = next((drive.point / "models" / "mvdream").iterdir())
    shutil.copytree(snapshot, tmp_path / "by hand")
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "by hand", capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, f"{FILE}: OK\n")
    assert "cp -r" in (snapshot / "RESTORE.txt").read_text()
    assert not list(drive.point.glob("models/.steelyard/staging/*.*")), "a finished backup leaves no partial"


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_command_says_what_the_drive_can_do(world: World, plug: Plug, kind: str) -> None:
    drive = plug(kind)
    on_drive(world, drive)
    can = target(world.site(), "usb").rows[0].facts["abilities"]
    unix, fat = kind in {"ext4", "xfs", "btrfs"}, kind in {"exfat", "fat32"}
    assert (can["hard_links"], can["symlinks"], can["modes"]) == (not fat, not fat, unix)
    assert can["reflink"] is (kind in {"xfs", "btrfs"})
    assert can["large_files"] in ((False, None) if kind == "fat32" else (True,))
    assert can["odd_names"] is not fat
    assert can["case_sensitive"] is not fat
    assert can["time_grain_ns"] <= 2_000_000_000
    assert not [path for path in (drive.point / "models").iterdir() if path.name != ".steelyard"], "the probe leaves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_mode_of_the_source_are_kept_as_far_as_the_drive_can(held: World, plug: Plug, kind: str) -> None:
    drive = plug(kind)
    on_drive(held, drive)
    os.chmod(held.weights, 0o640)
    os.utime(held.weights, ns=(10**18, 1_600_000_001_123_456_789))
    assert backup(held.site()).exit_code == 0
    seen = next(drive.point.glob(f"models/mvdream/*/{FILE}")).stat()
    assert abs(seen.st_mtime - 1_600_000_001.1) <= 2
    if kind in {"ext4", "xfs", "btrfs"}:
        assert (seen.st_mtime_ns, seen.st_mode & 0o777) == (1_600_000_001_123_456_789, 0o640)
