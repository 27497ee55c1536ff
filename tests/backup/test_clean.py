"""clean names what may go and removes it only when told to; never the last proven copy, never what nobody recorded."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.clean import clean
from steelyard.download import download
from steelyard.report import Report, Row
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.backup.conftest import FILE, next_commit
from tests.conftest import World

OLD = time.time() - 3 * 86400


def age(path: Path, at: float = OLD) -> None:
    os.utime(path, (at, at))


def seen_at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let clean believe that it runs *days* from now: ctime can't be set back."""
    now = time.time() + days * 86400
    monkeypatch.setattr("time.time", lambda: now)


@pytest.fixture
def versions(world: World, hub: LoopbackHub) -> list[str]:
    """Five snapshots on the drive, sealed a day apart; the weights never change."""
    world.configure(files='["*.pt", "*.txt"]')
    commits = []
    for number in range(5):
        if number == 0:
            hub.add_revision("MVDream/MVDream", {"note.txt": b"note 0"})
            assert download(world.site()).exit_code == 0
            commits.append(world.site().lock().models["mvdream"].commit)
        else:
            commits.append(next_commit(world, hub, {"note.txt": b"note %d" % number}))
        assert backup(world.site()).exit_code == 0
        at = time.time() - (5 - number) * 86400
        for record in (world.usb / "mvdream" / commits[-1]).glob("*"):
            if record.name in {"manifest.json", "SHA256SUMS", "RESTORE.txt"}:
                age(record, at)
    assert verify(world.site(), copy="usb").exit_code == 0
    return commits


def gone(report: Report, reason: str = "superseded") -> list[Row]:
    return [row for row in report.rows if reason in row.facts["reason"]]


def test_snapshots_beyond_keep_last_are_named_and_removed_only_with_apply(world: World, versions: list[str]) -> None:
    told = clean(world.site())
    assert [row.facts["commit"] for row in gone(told)] == versions[:2]
    assert {row.outcome for row in told.rows} == {"would-remove"}
    assert all((world.usb / "mvdream" / commit / FILE).exists() for commit in versions)

    done = world.run("clean", "--apply")
    assert (done.code, [row["action"] for row in done.rows]) == (0, ["removed", "removed"])
    assert sorted(path.name for path in (world.usb / "mvdream").iterdir()) == sorted(versions[2:])
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}
    assert clean(world.site()).rows == []


def test_bytes_that_another_snapshot_shares_are_not_counted_as_freed(world: World, versions: list[str]) -> None:
    for row in gone(clean(world.site())):
        assert 0 < row.facts["bytes"] < 100_000, "the weights stay, shared by hard link"


def test_the_last_proven_snapshot_never_goes(world: World, versions: list[str]) -> None:
    world.config.write_text(world.config.read_text().replace("mount_point = false", "mount_point = false\nkeep_last = 1"))
    for commit in versions[1:]:
        path = world.usb / "mvdream" / commit / "note.txt"
        path.write_bytes(b"rotten")
    assert verify(world.site(), copy="usb").exit_code == 1
    assert [row for row in gone(clean(world.site(), apply=True)) if row.copy == "usb"] == []
    assert (world.usb / "mvdream" / versions[0] / FILE).exists()


def test_a_snapshot_whose_files_changed_since_their_proof_is_not_the_one_that_lets_others_go(world: World, versions: list[str]) -> None:
    world.config.write_text(world.config.read_text().replace("mount_point = false", "mount_point = false\nkeep_last = 1"))
    for commit in versions:
        (world.usb / "mvdream" / commit / "note.txt").touch()
    assert gone(clean(world.site())) == [], "none is proven as it is now"


def test_a_snapshot_with_files_that_nothing_records_is_left_alone(world: World, versions: list[str]) -> None:
    (world.usb / "mvdream" / versions[0] / "my own notes.md").write_text("mine")
    done = clean(world.site(), apply=True)
    assert [row.facts["commit"] for row in gone(done)] == [versions[1]]
    assert (world.usb / "mvdream" / versions[0] / "my own notes.md").exists()


def test_a_model_that_the_config_no_longer_names_is_left_alone(world: World, versions: list[str]) -> None:
    (world.usb / "mvdream").rename(world.usb / "formerly")
    assert clean(world.site(), apply=True).rows == []


def test_nothing_is_removed_through_a_link_or_on_another_file_system(world: World, versions: list[str], tmp_path: Path) -> None:
    away = tmp_path / "away"
    (world.usb / "mvdream" / versions[0]).rename(away)
    (world.usb / "mvdream" / versions[0]).symlink_to(away)
    assert clean(world.site(), apply=True).exit_code in {0, 3}
    assert (away / FILE).exists()
    if os.geteuid() != 0:
        return
    inside = world.usb / "mvdream" / versions[1]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    mounted = world.home / "models" / ".steelyard" / "quarantine" / "case"
    mounted.mkdir(parents=True)
    (mounted / "record.json").write_text("{}")
    (mounted / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted / "sub")], check=True)
    try:
        (mounted / "sub" / "precious").write_text("x")
        world.config.write_text(world.config.read_text().replace('views = "copy"', 'views = "copy"\nkeep_quarantine = "0s"'))
        done = clean(world.site(), apply=True)
        assert "another file system" in " ".join(error.message for error in done.errors)
        assert (mounted / "sub" / "precious").exists()
    finally:
        subprocess.run(["umount", str(mounted / "sub")], check=True)
    assert inside


def test_orphaned_partials_go_after_a_day_and_those_that_a_run_would_go_on_with_stay(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from steelyard.staging import Partial

    site = held.site()
    entry = site.manifest("mvdream", site.lock().models["mvdream"].commit)[FILE]
    staging = held.models / ".steelyard" / "staging"
    for identity in (entry.sha256, "0" * 64):
        with Partial(staging, FILE, identity, 1000):
            pass
    assert clean(held.site()).rows == [], "neither is a day old"
    seen_at(monkeypatch, 2)
    rows = gone(clean(held.site(), apply=True), "orphaned")
    assert rows and all("0" * 20 in row.path for row in rows)
    assert {path.name[-28:] for path in staging.iterdir()} == {f"{entry.sha256[:20]}.partial"[-28:], f"{entry.sha256[:20]}.journal"[-28:]}


def test_unfinished_downloads_of_the_library_and_old_quarantine_go(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = next(held.home.glob("hf/hub/models--*/blobs"))
    (blobs / f"{'a' * 64}.0badf00d.incomplete").write_bytes(b"x" * 5000)
    case = held.models / ".steelyard" / "quarantine" / "20200101T000000Z-w-abc"
    case.mkdir(parents=True)
    (case / "w.pt").write_bytes(b"y" * 700)
    (case / "record.json").write_text("{}")
    (case.parent / "not ours").mkdir()
    assert clean(held.site()).rows == []
    seen_at(monkeypatch, 31)
    told = clean(held.site())
    assert sorted((row.copy, row.facts["bytes"]) for row in told.rows) == [("hub-cache", 5000), ("store", 702)]
    done = clean(held.site(), apply=True)
    assert {row.outcome for row in done.rows} == {"removed"} and not case.exists()
    assert (case.parent / "not ours").exists() and len(list(blobs.iterdir())) > 0


def test_a_copy_that_another_run_writes_to_is_left_alone(world: World, versions: list[str]) -> None:
    from steelyard.runlock import locked

    with locked(world.usb / ".steelyard" / "locks", "usb mvdream", "backup"):
        assert gone(clean(world.site(), apply=True)) == []
    assert len(list((world.usb / "mvdream").iterdir())) == 5


def test_a_removal_that_was_stopped_half_way_is_ended_by_the_next(world: World, versions: list[str]) -> None:
    going = world.usb / ".steelyard" / "going" / "mvdream-x"
    going.mkdir(parents=True)
    (going / FILE).write_bytes(b"z" * 10)
    done = clean(world.site(), apply=True)
    assert len(gone(done, "half-way")) == 1 and not going.exists()
