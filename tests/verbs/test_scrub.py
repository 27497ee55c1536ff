"""scrub gives way, saves a battery, and what it proves is told file by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard import scrub as scrubbing
from steelyard.backup import backup
from steelyard.download import download
from steelyard.scrub import scrub
from steelyard.status import status
from tests.conftest import FILE, World


@pytest.fixture
def held(world: World) -> World:
    assert download(world.site()).exit_code == 0
    return world


def test_on_battery_nothing_is_read_and_it_says_so(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "on_battery", lambda: True)
    report = scrub(held.site())
    assert (report.exit_code, report.rows, report.extra["note"]) == (0, [], "skipped: on battery")


@pytest.mark.parametrize(
    ("supplies", "answer"),
    [
        ({}, False),
        ({"BAT0": ("Battery", None), "AC": ("Mains", "0")}, True),
        ({"BAT0": ("Battery", None), "AC": ("Mains", "1")}, False),
        ({"BAT0": ("Battery", None)}, False),
        ({"AC": ("Mains", "0")}, False),
        ({"BAT0": ("Battery", None), "AC": ("Mains", "0"), "usb": ("USB", "1")}, False),
    ],
)
def test_a_battery_counts_only_where_the_mains_is_known_to_be_off(
    supplies: dict[str, tuple[str, str | None]], answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (kind, online) in supplies.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(kind + "\n")
        if online is not None:
            (tmp_path / name / "online").write_text(online + "\n")
    monkeypatch.setattr(scrubbing, "Path", lambda _: tmp_path)
    assert scrubbing.on_battery() is answer


def test_it_waits_while_the_disk_is_busy_and_not_for_ever(
    held: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = iter([90.0, 60.0, 10.0])
    monkeypatch.setattr(scrubbing, "disk_pressure", lambda: next(busy, 0.0))
    waits: list[float] = []
    monkeypatch.setattr("steelyard.watch.Watch.pause", lambda self, seconds: waits.append(seconds))
    with caplog.at_level("INFO", logger="steelyard"):
        scrubbing.wait_while_busy()
    assert waits == [5.0, 5.0] and "giving way" in caplog.text
    monkeypatch.setattr(scrubbing, "disk_pressure", lambda: 99.0)
    monkeypatch.setattr(scrubbing, "LONGEST_WAIT_S", 0.0)
    scrubbing.wait_while_busy()
    monkeypatch.setattr(scrubbing, "disk_pressure", lambda: None)
    scrubbing.wait_while_busy()


def test_status_says_of_every_file_when_it_was_last_proven_and_by_what(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    assert scrub(held.site(), budget="1B").exit_code == 0
    files = {(one["copy"], one["file"]): one for one in status(held.site()).extra["files"]}
    assert set(files) == {(copy, FILE) for copy in ("store", "hub-cache", "usb")}
    assert "read back" in files["usb", FILE]["proof"] and files["usb", FILE]["last_proven"] > "2020"
    held.flip(held.weights, 5)
    from steelyard.verify import verify

    assert verify(held.site()).exit_code == 1
    after = {(one["copy"], one["file"]): one for one in status(held.site()).extra["files"]}
    assert after["store", FILE] == files["store", FILE], "a look that finds it bad is no proof, and takes none away"
