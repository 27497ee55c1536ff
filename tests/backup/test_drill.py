"""A backup that was never restored is a hope: a drill restores it, proves it, loads it, and says how long that took."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.checkpoint import LoadReport
from steelyard.drill import drill
from tests.backup.conftest import FILE, Plug, on_drive
from tests.conftest import World


@pytest.fixture
def quick_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load check has tests of its own; here it only has to be asked."""

    def loaded(path: Path, *_: object, **__: object) -> LoadReport:
        assert path.is_file()
        return LoadReport(verdict="ok", device="cpu", reasons=())  # type: ignore[call-arg]

    monkeypatch.setattr("steelyard.drill.load_check", loaded)


def scratch(world: World) -> list[Path]:
    return list((world.models / ".steelyard" / "drill").glob("*"))


def test_a_drill_loads_what_it_restored_and_leaves_nothing(held: World) -> None:
    pytest.importorskip("torch")
    assert backup(held.site()).exit_code == 0
    done = held.run("drill")
    row = done.rows[0]
    assert (done.code, row["copy"], row["verdict"], row["loaded"]) == (0, "usb", "ok", 1)
    assert row["bytes_written"] == held.weights.stat().st_size and row["minutes"] >= 0 and row["way"] == "scratch"
    assert scratch(held) == []
    assert [event[2] for event in held.site().history.events("drill", "mvdream")] == ["ok"]


def test_a_replica_that_rotted_fails_its_drill_and_the_failure_is_kept(held: World, quick_load: None) -> None:
    assert backup(held.site()).exit_code == 0
    held.flip(next(held.usb.glob(f"mvdream/*/{FILE}")), 9_000_000)
    report = drill(held.site())
    assert (report.exit_code, report.errors[0].code) == (1, "corrupt")
    assert [(row.outcome, row.copy, row.exit_code) for row in report.rows] == [("failed", "usb", 1)], (
        "a row, so that an event can tell of it"
    )
    assert held.site().history.events("drill", "mvdream")[0][2] == "failed"
    assert scratch(held) == []


@pytest.mark.root
def test_where_scratch_is_too_small_every_piece_is_read_and_goes_nowhere(held: World, plug: Plug, quick_load: None) -> None:
    drive = plug("ext4", 16, name="scratch")
    assert backup(held.site()).exit_code == 0
    (held.models / ".steelyard" / "drill").mkdir()
    (held.models / ".steelyard" / "drill").rmdir()
    (held.models / ".steelyard" / "drill").symlink_to(drive.point)
    report = drill(held.site())
    row = report.rows[0]
    assert (report.exit_code, row.facts["verdict"], row.facts["way"], row.facts["loaded"]) == (0, "ok", "nowhere", 0)
    assert "scratch is too small" in row.facts["why"]
    held.flip(next(held.usb.glob(f"mvdream/*/{FILE}")), 9_000_000)
    assert drill(held.site()).exit_code == 1


def test_a_drill_that_takes_much_longer_than_usual_says_so(held: World, quick_load: None) -> None:
    assert backup(held.site()).exit_code == 0
    history = held.site().history
    for seconds in (0.001, 0.001, 0.002):
        history.event("drill", "mvdream", "usb", "ok", seconds=seconds, way="scratch")
    assert drill(held.site()).rows[0].facts["slower"] is False, "5 s more are nothing to speak of"
    assert drill(held.site()).rows[0].facts["usual_seconds"] is not None


def test_what_a_killed_drill_left_is_swept_by_the_next(held: World, quick_load: None) -> None:
    assert backup(held.site()).exit_code == 0
    left = held.models / ".steelyard" / "drill" / "mvdream-killed"
    left.mkdir(parents=True)
    (left / FILE).write_bytes(b"x")
    assert drill(held.site()).exit_code == 0
    assert scratch(held) == []


@pytest.mark.root
def test_an_absent_drive_is_skipped_in_a_round_and_exit_3_by_name(held: World, plug: Plug, quick_load: None) -> None:
    drive = plug()
    on_drive(held, drive)
    assert backup(held.site()).exit_code == 0
    drive.unplug()
    assert [row.outcome for row in drill(held.site()).rows] == ["skipped"]
    assert held.run("drill", "--from", "usb").code == 3


def test_a_drill_with_no_backup_says_what_to_do(held: World) -> None:
    done = held.run("drill")
    assert (done.code, done.errors[0]["hint"]) == (1, "run: steelyard backup mvdream --to usb")
