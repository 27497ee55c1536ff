"""Versions side by side: what did not change is shared, what rotted is never carried, nothing is overwritten."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.restore import restore
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.backup.conftest import FILE, Plug, next_commit, on_drive
from tests.conftest import World

TWO = '["*.pt"]'


@pytest.fixture
def two_versions(world: World, hub: LoopbackHub, second: Path) -> tuple[str, str]:
    """Commit one has the weights; commit two adds small ones beside them."""
    world.configure(files=TWO)
    from steelyard.download import download

    assert download(world.site()).exit_code == 0
    one = world.site().lock().models["mvdream"].commit
    assert backup(world.site()).exit_code == 0
    return one, next_commit(world, hub, {"extra.pt": second})


def test_an_unchanged_file_of_a_new_commit_is_shared_and_costs_no_bytes(world: World, two_versions: tuple[str, str]) -> None:
    one, two = two_versions
    report = backup(world.site())
    rows = {row.file: row for row in report.rows}
    assert report.exit_code == 0
    assert (rows[FILE].outcome, rows[FILE].facts["bytes_written"], rows[FILE].facts["shared"]) == ("copied", 0, "hard link")
    assert rows["extra.pt"].facts["bytes_written"] > 0
    old, new = (world.usb / "mvdream" / commit / FILE for commit in (one, two))
    assert old.stat().st_ino == new.stat().st_ino
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}
    assert [row.outcome for row in backup(world.site()).rows] == ["unchanged", "unchanged"]


def test_an_older_file_that_rotted_is_not_shared_but_copied_anew(world: World, two_versions: tuple[str, str]) -> None:
    one, two = two_versions
    old = world.usb / "mvdream" / one / FILE
    seen = old.stat()
    world.flip(old, 12_345_678)
    os.utime(old, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    report = backup(world.site())
    row = next(row for row in report.rows if row.file == FILE)
    assert (report.exit_code, "shared" in row.facts, row.facts["bytes_written"]) == (0, False, seen.st_size)
    new = world.usb / "mvdream" / two / FILE
    assert hashlib.sha256(new.read_bytes()).hexdigest() == row.facts["sha256"]
    assert new.stat().st_ino != seen.st_ino


def test_mending_one_snapshot_never_changes_the_bytes_behind_the_other_name(world: World, two_versions: tuple[str, str]) -> None:
    from steelyard.repair import repair

    one, _two = two_versions
    assert backup(world.site()).exit_code == 0
    shared = world.usb / "mvdream" / one / FILE
    world.flip(shared, 100)
    assert repair(world.site(), copy="usb").exit_code == 0
    assert {row.outcome for row in verify(world.site(), copy="usb").rows} == {"ok"}


@pytest.mark.root
@pytest.mark.parametrize("kind", ["exfat", "btrfs"])
def test_where_links_are_not_to_be_had_the_file_is_copied(world: World, hub: LoopbackHub, second: Path, plug: Plug, kind: str) -> None:
    from steelyard.download import download

    drive = plug(kind)
    on_drive(world, drive, files=TWO)
    assert download(world.site()).exit_code == 0
    assert backup(world.site()).exit_code == 0
    two = next_commit(world, hub, {"extra.pt": second})
    report = backup(world.site())
    row = next(row for row in report.rows if row.file == FILE)
    assert report.exit_code == 0
    assert (row.facts["bytes_written"] == 0) is (kind == "btrfs")
    assert hashlib.sha256((drive.point / "models" / "mvdream" / two / FILE).read_bytes()).hexdigest() == row.facts["sha256"]


def test_any_snapshot_can_be_restored_elsewhere(world: World, two_versions: tuple[str, str], tmp_path: Path) -> None:
    one, two = two_versions
    assert backup(world.site()).exit_code == 0
    for commit, files in ((one, [FILE]), (two, ["extra.pt", FILE])):
        back = restore(world.site(), "mvdream", source="usb", revision=commit[:8], into=tmp_path / commit)
        assert (back.exit_code, sorted(row.file for row in back.rows)) == (0, files)
        assert sorted(path.name for path in (tmp_path / commit).iterdir()) == files


def test_nothing_on_the_replica_is_deleted_when_the_source_shrinks(world: World, hub: LoopbackHub, two_versions: tuple[str, str]) -> None:
    assert backup(world.site()).exit_code == 0
    before = {path: path.stat().st_ino for path in world.usb.rglob("*.pt")}
    next_commit(world, hub, {"extra.pt": None})
    assert backup(world.site()).exit_code == 0
    assert {path: path.stat().st_ino for path in before if path.exists()} == before


def test_a_replica_file_that_rotted_is_left_as_it_is_and_repair_is_named(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    there = next(held.usb.glob(f"mvdream/*/{FILE}"))
    held.flip(there, 9_000_000)
    bad = there.read_bytes()
    done = held.run("backup")
    assert (done.code, done.rows[0]["action"]) == (1, "refused")
    assert "steelyard repair mvdream --copy usb" in done.errors[0]["hint"]
    assert there.read_bytes() == bad
    assert held.run("repair", "--copy", "usb").code == 0
    assert held.run("backup").rows[0]["action"] == "unchanged"


def test_a_source_that_changes_while_it_is_copied_is_refused(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from steelyard.copies.base import ProvenReader

    read = ProvenReader.read_piece

    def meddle(self: ProvenReader, index: int, buffer: memoryview) -> memoryview:
        if index == 2:
            with held.weights.open("r+b") as file:
                file.seek(17 << 20)
                file.write(b"another program writes here")
        return read(self, index, buffer)

    monkeypatch.setattr(ProvenReader, "read_piece", meddle)
    report = backup(held.site())
    assert (report.exit_code, report.rows[0].outcome, report.errors[0].code) == (1, "refused", "source-corrupt")
    assert not list(held.usb.glob("mvdream/*/*")), "nothing stands under a final name"


@pytest.mark.root
@pytest.mark.parametrize("copied_before", [False, True])
def test_a_source_that_rotted_below_the_file_system_never_reaches_a_replica(
    world: World, plug: Plug, checkpoint: Path, copied_before: bool
) -> None:
    """Bytes change on the medium itself: size, times and inode stay as they were."""
    from steelyard.download import download

    drive = plug("ext4", 120)
    text = world.config.read_text().replace(f'models = "{world.models}"', f'models = "{drive.point}/models"')
    world.config.write_text(text)
    assert download(world.site()).exit_code == 0
    weights = drive.point / "models" / FILE
    if copied_before:
        assert backup(world.site()).exit_code == 0
    kept = {path: path.read_bytes() for path in world.usb.rglob("*.pt")}
    before = weights.stat()
    needle = checkpoint.read_bytes()[12_000_000:12_000_064]
    assert drive.rot(needle, b"\xff" * 8) >= 1
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ctime_ns,
        before.st_ino,
    )

    done = world.run("backup")
    assert (done.code, done.rows[0]["action"], done.errors[0]["code"]) == (1, "refused", "source-corrupt")
    assert "steelyard repair mvdream" in done.errors[0]["hint"]
    assert {path: path.read_bytes() for path in world.usb.rglob("*.pt")} == kept
    assert world.run("repair").code == 0
    assert world.run("backup").code == 0


@pytest.mark.parametrize("how", ["grown", "behind a link"])
def test_a_source_that_is_not_as_it_should_be_is_refused_even_where_its_pieces_are_right(held: World, how: str) -> None:
    """What verify calls corrupt is not passed over because a copy of it would be right."""
    if how == "grown":
        with held.weights.open("ab") as file:
            file.write(b"more")
    else:
        held.weights.rename(held.home / "elsewhere.pt")
        held.weights.symlink_to(held.home / "elsewhere.pt")
    done = held.run("backup")
    assert (done.code, done.rows[0]["action"], done.errors[0]["code"]) == (1, "refused", "source-corrupt")
    assert list(held.usb.rglob("*.pt")) == []


def test_many_small_files_go_together_and_a_rotten_one_stops_none_of_the_others(world: World, hub: LoopbackHub) -> None:
    from steelyard.download import download

    files = {f"configs/{number:03}.txt": b"number %d" % number for number in range(300)} | {
        "configs/empty.txt": b"",
        "copy.txt": b"number 7",
    }
    hub.add_revision("MVDream/MVDream", dict(files))
    world.configure(files='["*.txt"]')
    assert download(world.site()).exit_code == 0
    (world.models / "configs" / "123.txt").write_bytes(b"rotten!")
    report = backup(world.site())
    refused = [row.file for row in report.rows if row.outcome == "refused"]
    assert (report.exit_code, refused, len(report.rows)) == (1, ["configs/123.txt"], 302)
    there = {path.relative_to(next((world.usb / "mvdream").iterdir())).as_posix() for path in world.usb.glob("mvdream/*/**/*.txt")}
    assert there == set(files) - {"configs/123.txt"}, "no records yet: it is no snapshot before it is whole"
    assert not list(world.usb.glob(".steelyard/staging/*"))
    (world.models / "configs" / "123.txt").write_bytes(b"number 123")
    report = backup(world.site())
    assert (report.exit_code, [row.file for row in report.rows if row.outcome == "copied"]) == (0, ["configs/123.txt"])
    for name, data in files.items():
        assert next((world.usb / "mvdream").iterdir()).joinpath(name).read_bytes() == data
    assert {row.outcome for row in backup(world.site()).rows} == {"unchanged"}


def test_a_round_with_nothing_to_do_looks_again_at_whatever_moved(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    site = held.site()
    commit = site.lock().models["mvdream"].commit
    assert site.history.state("usb", "mvdream", commit), "all of it is known by one word"
    (held.usb / "mvdream" / commit / "SHA256SUMS").unlink()
    assert backup(held.site()).exit_code == 0
    assert (held.usb / "mvdream" / commit / "SHA256SUMS").exists()
    held.flip(held.usb / "mvdream" / commit / FILE, 77)
    assert backup(held.site()).exit_code == 1
    assert not held.site().history.state("usb", "mvdream", commit)


@pytest.mark.root
def test_replicas_on_separate_disks_are_written_at_once_and_a_failure_of_one_is_its_own(
    held: World, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from steelyard.copies.base import ProvenReader

    one, two = plug(name="one"), plug(name="two", kind="xfs")
    held.configure(
        f'[replicas.nas]\nkind = "mount"\npath = "{two.point}/m"\nmount_point = "{two.point}"\n'
        f'[replicas.gone]\nkind = "mount"\npath = "{held.home}/gone/m"\nmount_point = "{held.home}/gone"\n'
    )
    text = held.config.read_text().replace(
        f'path = "{held.usb}"\nmount_point = false', f'path = "{one.point}/m"\nmount_point = "{one.point}"'
    )
    held.config.write_text(text)
    meet = threading.Barrier(2)
    read = ProvenReader.read_piece

    def met(self: ProvenReader, index: int, buffer: memoryview) -> memoryview:
        if index == 0:
            meet.wait(10)  # breaks unless both copies are under way at the same time
        return read(self, index, buffer)

    monkeypatch.setattr(ProvenReader, "read_piece", met)
    report = backup(held.site())
    assert (report.exit_code, [(row.copy, row.outcome) for row in report.rows]) == (
        0,
        [("usb", "copied"), ("nas", "copied"), ("gone", "skipped")],
    ), report.errors
    monkeypatch.undo()
    assert {row.outcome for row in verify(held.site(), copy="nas").rows} == {"ok"}
