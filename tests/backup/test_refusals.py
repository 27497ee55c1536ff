"""Each refusal comes before the first byte: exit 3, one sentence, nothing written."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steelyard.abilities import refuse_what_does_not_fit
from steelyard.backup import backup
from steelyard.errors import MountAbsent, NoSpace, Refused, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.report import Report
from steelyard.restore import restore
from steelyard.runlock import locked
from steelyard.status import status
from steelyard.target import target
from tests.backup.conftest import FILE, Plug, on_drive
from tests.conftest import World


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "lost+found")


def refused(world: World, to: str | None = "usb") -> SteelyardError:
    """Run the backup, which must refuse with exit code 3 and one sentence."""
    try:
        report = backup(world.site(), to=to)
    except Refused as error:
        assert error.exit_code == 3 and "\n" not in error.message
        return error
    assert report.exit_code == 3, report.as_json()
    return report.errors[0]


@pytest.mark.root
def test_an_absent_drive_is_exit_3_by_name_and_skipped_with_its_age_in_a_round(held: World, plug: Plug) -> None:
    drive = plug()
    on_drive(held, drive)
    assert backup(held.site()).exit_code == 0
    drive.unplug()
    before = tree(drive.point)
    error = refused(held)
    assert (error.code, str(drive.point) in error.message) == ("mount-absent", True)
    done = held.run("backup")
    row = done.rows[0]
    assert (done.code, row["action"], row["overdue"]) == (0, "skipped", False)
    assert row["last_good_at"] and row["age_s"] < 600 and "minutes old" in row["why"]
    assert tree(drive.point) == before == []


def test_a_folder_that_is_no_mount_is_refused_and_stays_empty(held: World, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    text = held.config.read_text().replace(f'path = "{held.usb}"\nmount_point = false', f'path = "{point}/models"\nmount_point = "{point}"')
    held.config.write_text(text)
    assert isinstance(refused(held), MountAbsent)
    assert tree(point) == []


@pytest.mark.root
def test_a_bind_mount_counts_as_a_mount(held: World, plug: Plug, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    point = tmp_path / "bound"
    point.mkdir()
    subprocess.run(["mount", "--bind", str(real), str(point)], check=True)
    try:
        text = held.config.read_text().replace(f'path = "{held.usb}"\nmount_point = false', f'path = "{point}/m"\nmount_point = "{point}"')
        held.config.write_text(text)
        assert backup(held.site(), to="usb").exit_code == 0
        assert list(real.glob(f"m/mvdream/*/{FILE}"))
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert isinstance(refused(held), MountAbsent)


@pytest.mark.root
def test_a_path_that_leads_off_the_drive_is_refused(held: World, plug: Plug, tmp_path: Path) -> None:
    drive = plug()
    on_drive(held, drive)
    (tmp_path / "elsewhere").mkdir()
    (drive.point / "models").symlink_to(tmp_path / "elsewhere")
    assert isinstance(refused(held), MountAbsent)
    assert tree(tmp_path / "elsewhere") == []


@pytest.mark.root
def test_a_drive_mounted_read_only_is_refused(held: World, plug: Plug) -> None:
    drive = plug()
    on_drive(held, drive)
    drive.unplug()
    drive.plug("ro")
    error = refused(held)
    assert (error.code, "remount,rw" in error.hint) == ("read-only", True)


@pytest.mark.root
def test_a_drive_that_fell_to_read_only_is_found_out_by_a_probe_write(held: World, plug: Plug) -> None:
    drive = plug("ext4")
    on_drive(held, drive)
    drive.unplug()
    drive.plug("errors=remount-ro")
    trigger = Path("/sys/fs/ext4") / Path(drive.loop).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("the kernel has no trigger_fs_error")
    trigger.write_text("a test")
    error = refused(held)
    assert error.code == "read-only"
    assert tree(drive.point) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "exfat"])
def test_too_little_room_is_refused_with_the_amounts_and_nothing_is_written(held: World, plug: Plug, kind: str) -> None:
    drive = plug(kind, 16)
    on_drive(held, drive)
    error = refused(held)
    assert isinstance(error, NoSpace) and "21.0 MB are needed" in error.message
    assert tree(drive.point) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "exfat"])
def test_a_name_that_the_drive_cannot_hold_is_refused_where_it_cannot(world: World, plug: Plug, kind: str) -> None:
    drive = plug(kind)
    sizes = {"configs/what?.yaml": 10, "übung.pt": 10}
    if kind == "ext4":
        refuse_what_does_not_fit(drive.point, "usb", sizes)
    else:
        with pytest.raises(Refused, match=r"usb can't hold the name 'what\?.yaml'"):
            refuse_what_does_not_fit(drive.point, "usb", sizes)
    assert tree(drive.point) == []


@pytest.mark.root
@pytest.mark.parametrize(("kind", "takes"), [("fat32", False), ("exfat", True), ("ntfs", True), ("ext4", True)])
def test_a_file_beyond_4_gib_is_refused_on_fat32_only(plug: Plug, kind: str, takes: bool) -> None:
    drive = plug(kind)
    if takes:
        refuse_what_does_not_fit(drive.point, "usb", {"big.pt": 5 << 30})
    else:
        try:
            refuse_what_does_not_fit(drive.point, "usb", {"big.pt": 5 << 30})
        except Refused as error:
            assert "4 GiB" in error.message
        else:
            pytest.skip("this driver for FAT32 does not say where a file ends (fusefat)")
    assert tree(drive.point) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["fat32", "exfat"])
def test_a_backup_of_a_file_beyond_4_gib_is_refused_on_fat32_and_nothing_is_written(held: World, plug: Plug, kind: str) -> None:
    """A store with a file of 5 GiB that is all hole: the plan alone must find out."""
    from steelyard.lock import LockedFile, LockedModel

    drive = plug(kind, 6200)
    on_drive(held, drive)
    site, size = held.site(), 5 << 30
    locked_model = site.lock().models["mvdream"]
    entry = FileEntry(FILE, size, "1" * 64, "0" * 16, 8 << 20, ("0" * 64,) * 640, "1" * 64)
    site.agree(
        "mvdream", LockedModel(locked_model.repo_id, locked_model.revision, locked_model.commit, (LockedFile(FILE, size, sha256="1" * 64),))
    )
    site.store.seal(Manifest("mvdream", locked_model.repo_id, locked_model.revision, locked_model.commit, (entry,)))
    os.truncate(held.weights, size)
    before = tree(drive.point)
    if kind == "exfat":
        # It may hold such a file: here the hole is found out as what it is, a store that rotted.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("steelyard.backup.copy_files", lambda *_: pytest.fail("it got as far as copying, which is all that is asked"))
            with pytest.raises(pytest.fail.Exception, match="as far as copying"):
                backup(held.site(), to="usb")
        return
    error = refused(held)
    if "4 GiB" not in error.message:
        pytest.fail(error.message)
    assert (FILE in error.message, "exFAT or ext4" in error.hint) == (True, True)
    assert tree(drive.point) == before == []


@pytest.mark.root
def test_another_drive_under_the_same_mount_point_is_refused(held: World, plug: Plug) -> None:
    right, wrong = plug(name="drive"), plug(name="other", size_mb=64)
    on_drive(held, right)
    ident = target(held.site(), "usb").rows[0].facts["id"]
    assert backup(held.site(), to="usb").exit_code == 0
    right.unplug()
    wrong.unplug()
    wrong.point = right.point
    wrong.plug()
    error = refused(held)
    assert (error.code, "no marker of ours" in error.message, "target usb" in error.hint) == ("mount-absent", True, True)
    assert tree(wrong.point) == []
    assert backup(held.site()).rows[0].outcome == "skipped", "in a round it counts as absent"

    second = target(held.site(), "usb").rows[0].facts
    assert (second["id"] != ident, second["other_drives"]) == (True, [ident]), "the two now take turns"
    assert backup(held.site(), to="usb").exit_code == 0
    wrong.unplug()
    right.plug()
    assert backup(held.site(), to="usb").exit_code == 0
    target(held.site(), "usb", forget=second["id"][:6])
    right.unplug()
    wrong.plug()
    assert "another drive is mounted there" in refused(held).message


@pytest.mark.root
def test_the_marker_is_made_by_target_only_and_kept_when_it_is_run_again(held: World, plug: Plug, caplog: pytest.LogCaptureFixture) -> None:
    drive = plug()
    on_drive(held, drive)
    assert backup(held.site()).exit_code == 0
    assert "run: steelyard target usb" in caplog.text
    marker = drive.point / "models" / ".steelyard" / "target.json"
    assert not marker.exists()
    first = held.run("target", "usb").rows[0]
    assert (first["id"], held.run("target", "usb").rows[0]["id"]) == (first["id"], first["id"])
    caplog.clear()
    assert backup(held.site()).exit_code == 0
    assert "marker" not in caplog.text
    marker.unlink()
    assert isinstance(refused(held), MountAbsent)


@pytest.mark.root
def test_how_far_the_other_drives_of_the_shelf_are_behind_is_told(held: World, plug: Plug, caplog: pytest.LogCaptureFixture) -> None:
    drive = plug()
    on_drive(held, drive, 'max_age = "14d"\n')
    target(held.site(), "usb")
    site = held.site()
    shelf = site.replicas["usb"].drive.shelf  # type: ignore[attr-defined]
    shelf.remember("b" * 16)
    commit = site.lock().models["mvdream"].commit
    old = (datetime.now(UTC) - timedelta(days=21)).isoformat(timespec="seconds")
    _event(site.history.path, old, {"commit": commit, "drive": "b" * 16})
    assert backup(held.site()).exit_code == 0
    assert f"drive {'b' * 16} is 21 days behind" in caplog.text
    shelf.remember("b" * 16, "B")
    shelf.remember("c" * 16, "C")
    done = held.run("backup")
    behind = {row["drive"]: row for row in done.rows if row["action"] == "skipped"}
    assert (done.code, behind["B"]["why"], behind["B"]["overdue"]) == (0, "drive B is 21 days behind", True)
    assert (behind["C"]["why"], behind["C"]["age_s"], behind["C"]["overdue"]) == ("drive C never had it", None, True)
    drives = status(held.site()).extra["models"][0]["copies"]["usb"]["drives"]
    assert {one["label"]: one["overdue"] for one in drives} == {None: False, "B": True, "C": True}
    assert held.run("target", "usb", "--label", "A").rows[0]["label"] == "A"
    assert held.run("target", "usb").rows[0]["label"] == "A", "it keeps its label"
    target(held.site(), "usb", forget="B")
    assert set(shelf.labels().values()) == {"A", "C"}


@pytest.mark.root
def test_an_absent_drive_is_overdue_when_its_last_good_copy_is_older_than_max_age(held: World, plug: Plug) -> None:
    drive = plug()
    on_drive(held, drive, 'max_age = "14d"\n')
    drive.unplug()
    row = backup(held.site()).rows[0]
    assert (row.facts["overdue"], row.facts["last_good_at"], row.exit_code) == (True, None, 0)
    _event(held.site().history.path, (datetime.now(UTC) - timedelta(days=13)).isoformat(), {})
    assert backup(held.site()).rows[0].facts["overdue"] is False
    held.config.write_text(held.config.read_text().replace('"14d"', '"12d"'))
    row = backup(held.site()).rows[0]
    assert row.facts["overdue"] is True and "13 days old" in row.facts["why"]


def _event(path: Path, at: str, facts: dict[str, object]) -> None:
    import json
    import sqlite3

    from steelyard.history import History

    History(path).event("probe", "", "", "")  # makes the tables
    with sqlite3.connect(path) as db:
        db.execute("insert into events values (?,?,?,?,?,?)", (at, "backup", "mvdream", "usb", "ok", json.dumps(facts)))
    db.close()


def test_two_hosts_that_share_a_drive_do_not_write_at_once(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    (held.usb / "mvdream" / next((held.usb / "mvdream").iterdir()).name / FILE).unlink()
    with locked(held.usb / ".steelyard" / "locks", "usb mvdream", "backup"):
        error = refused(held)
    assert (error.code, "steelyard backup" in error.message) == ("locked", True)


def test_two_hosts_keep_each_others_files_in_the_records_of_one_snapshot(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    replica = held.site().replicas["usb"]
    commit = replica.commits("mvdream")[0]
    mine = replica.manifest("mvdream", commit)
    assert mine is not None
    folder = held.usb / "mvdream" / commit
    (folder / "other.bin").write_bytes(b"x" * 10)
    other = FileEntry("other.bin", 10, "0" * 64, "0" * 16, 8 << 20, ("0" * 64,), "0" * 64)
    replica.seal(Manifest("mvdream", mine.repo_id, mine.revision, commit, (other,)))
    both = replica.manifest("mvdream", commit)
    assert both is not None and [entry.path for entry in both.files] == ["other.bin", FILE]
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 2
    with pytest.raises(Refused, match="is MVDream/MVDream there"):
        replica.seal(Manifest("mvdream", "Some/Other", mine.revision, commit, mine.files))


def test_a_symlinked_models_folder_works_and_one_disk_is_warned_of(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from steelyard.download import download

    (tmp_path / "external").mkdir()
    world.models.symlink_to(tmp_path / "external")
    assert download(world.site()).exit_code == 0
    assert backup(world.site()).exit_code == 0
    assert "same disk as the store" in caplog.text
    (tmp_path / "external" / FILE).unlink()
    back = restore(world.site(), "mvdream", source="usb")
    assert (back.exit_code, (tmp_path / "external" / FILE).is_file()) == (0, True)


def test_fewer_copies_than_min_copies_is_exit_1_and_shared_devices_count_once(held: World) -> None:
    text = held.config.read_text().replace('dir = "."', 'dir = "."\nmin_copies = 2')
    held.config.write_text(text)
    report: Report = backup(held.site())
    assert (report.exit_code, [error.code for error in report.errors]) == (1, ["too-few-copies"])
    assert "1 copy is whole on separate devices" in report.errors[0].message and "share a device" in report.errors[0].message


@pytest.mark.root
def test_a_drive_on_the_shelf_counts_as_a_copy_until_it_is_overdue(held: World, plug: Plug) -> None:
    drive = plug()
    on_drive(held, drive, 'max_age = "1h"\n')
    held.config.write_text(held.config.read_text().replace('dir = "."', 'dir = "."\nmin_copies = 2'))
    assert backup(held.site()).exit_code == 0
    drive.unplug()
    assert backup(held.site()).exit_code == 0
    model = status(held.site()).extra["models"][0]
    assert (model["verified_copies"], model["copies"]["usb"]["overdue"], model["copies"]["usb"]["away"]) == (2, False, True)
    held.config.write_text(held.config.read_text().replace('"1h"', '"0s"'))
    assert backup(held.site()).exit_code == 1
    model = status(held.site()).extra["models"][0]
    assert (model["verified_copies"], model["min_copies"], model["copies"]["usb"]["overdue"]) == (1, 2, True)


def test_a_file_that_is_missing_in_the_store_is_named_as_missing(held: World) -> None:
    os.unlink(held.weights)
    done = held.run("backup")
    assert (done.code, done.errors[0]["code"]) == (1, "missing")
    assert "steelyard repair mvdream" in done.errors[0]["hint"]
