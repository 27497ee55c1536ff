"""The same backup again: answered from a receipt where nothing has changed, and never where anything has."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steelyard import again, receipt
from steelyard.cli import main
from steelyard.copies.base import Finding
from steelyard.standins.hub import LoopbackHub
from tests.conftest import FILE, REPO, World

ARGV = ["backup", "--here", "--json"]
SMALL = {f"part-{number % 3}/{number:03}.bin": os.urandom(400 + number) for number in range(40)} | {"config.json": b"{}"}


class Asked:
    """Runs the command in this process, and asks whether the receipt alone would have answered."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]) -> None:
        self.world, self._patch, self._output = world, patch, output

    def command(self, *argv: str) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["steelyard", *(argv or ARGV)])
        self._output.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._output.readouterr()
        return int(ended.value.code or 0), out, err

    def receipt(self, *argv: str) -> str | None:
        """What the receipt answers; None where the command has to run. Nothing is printed then."""
        self._output.readouterr()
        answered = again.answered(list(argv or ARGV))
        out, _ = self._output.readouterr()
        assert answered or not out
        return out if answered else None

    def runs(self, verb: str = "run") -> list[tuple[str, str, str, str]]:
        with sqlite3.connect(self.world.models / ".steelyard" / "history.sqlite") as db:
            return db.execute("select model, copy, outcome, facts from events where verb=?", (verb,)).fetchall()


@pytest.fixture
def asked(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asked:
    hub.add_revision(REPO, SMALL)
    world = World(tmp_path, hub)
    world.configure(files='["*"]')
    for name, value in {"XDG_STATE_HOME": str(tmp_path / "state"), "STEELYARD_CONFIG": str(world.config)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    # Else every test would wait until its own config is old enough to be sure that it was not changed in the same moment.
    monkeypatch.setattr(receipt, "RACY_S", -600.0)
    asked = Asked(world, monkeypatch, capsys)
    assert asked.command("download", "--here", "--json")[0] == 0
    assert asked.command()[0] == 0
    assert asked.receipt() is None, "what copied something leaves no receipt"
    return asked


def without_seconds(text: str) -> dict[str, Any]:
    document = json.loads(text)
    assert 0 <= document.pop("seconds") < 60
    return document


def test_the_answer_is_the_same_and_the_run_is_noted_like_any_other(asked: Asked) -> None:
    code, out, err = asked.command()
    before, backups = len(asked.runs()), len(asked.runs("backup"))
    again_out = asked.receipt()
    assert again_out is not None and code == 0
    assert without_seconds(again_out) == without_seconds(out)
    assert len(without_seconds(out)["results"]) == len(SMALL)
    assert len(asked.runs()) == before + 1
    assert json.loads(asked.runs()[-1][3])["verb"] == "backup"
    model, copy, outcome, facts = asked.runs("backup")[backups]
    assert (model, copy, outcome, json.loads(facts)["bytes"]) == ("mvdream", "usb", "ok", 0)
    assert set(json.loads(facts)) == set(json.loads(asked.runs("backup")[backups - 1][3]))
    assert not [path for path in (asked.world.usb / ".steelyard").iterdir() if "probe" in path.name]
    assert "same disk" in err
    kept = list((asked.world.home / "state" / "steelyard" / "again").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600, 0o600]


def test_the_real_program_answers_so_too_in_a_table_and_on_stderr(asked: Asked) -> None:
    """In processes of its own, as cron would have it; the third is answered by the receipt of the second, and loads next to nothing."""
    world = asked.world
    time.sleep(2.2)  # until the config is old enough
    answers = []
    for _ in range(3):
        command = [sys.executable, "-X", "importtime", "-m", "steelyard", "backup"]
        done = subprocess.run(command, cwd=world.home, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
        lines = done.stderr.splitlines()
        loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}
        answers.append((done.stdout, [line for line in lines if not line.startswith("import time")], "cyclopts" in loaded))
    assert [slow for _, _, slow in answers] == [True, False, False]
    assert len({out.rpartition(" in ")[0] for out, _, _ in answers}) == 1 and "41 unchanged in 0." in answers[2][0]
    assert answers[1][1] == answers[0][1] and "same disk" in answers[0][1][0]


def rewrite(path: Path) -> None:
    """Other bytes of the same size, and the old time."""
    seen = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def a_snapshot_file(world: World) -> Path:
    return next(world.usb.glob("mvdream/*/part-1/*.bin"))


def behind_a_link(path: Path, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


def found_bad(world: World) -> None:
    site = world.site()
    locked = site.locked_model("mvdream")
    assert locked is not None
    site.history.record("usb", "mvdream", locked.commit, "config.json", Finding("corrupt", ((0, 2),), "pieces"))


CHANGES: dict[str, Callable[[World], object]] = {
    "a file of the store has other bytes": lambda world: rewrite(world.models / "part-0" / "000.bin"),
    "a file of the replica has other bytes": lambda world: rewrite(a_snapshot_file(world)),
    "a file of the replica is gone": lambda world: a_snapshot_file(world).unlink(),
    "a file of the replica is a link": lambda world: behind_a_link(a_snapshot_file(world), world.home / "x.bin"),
    "a folder of the replica is gone": lambda world: shutil.rmtree(next(world.usb.glob("mvdream/*/part-2"))),
    "a record of the replica is gone": lambda world: next(world.usb.glob("mvdream/*/RESTORE.txt")).unlink(),
    "the replica is gone": lambda world: world.usb.rename(world.home / "elsewhere"),
    "the store is gone": lambda world: world.models.rename(world.home / "elsewhere"),
    "the config was touched": lambda world: world.config.write_text(world.config.read_text() + "\n# a word\n"),
    "the config is gone": lambda world: world.config.unlink(),
    "the lock was changed": lambda world: world.config.with_suffix(".lock").write_text("{}"),
    "the store's record was changed": lambda world: rewrite(next((world.models / ".steelyard" / "manifests").rglob("*.json"))),
    "a file was found bad": found_bad,
    "the history is gone": lambda world: (world.models / ".steelyard" / "history.sqlite").unlink(),
    "a switch was cut short": lambda world: (
        (world.models / ".steelyard" / "switch").mkdir(exist_ok=True),
        (world.models / ".steelyard" / "switch" / "mvdream.json").write_text("{}"),
    ),
    "the drive got a marker": lambda world: (world.usb / ".steelyard" / "target.json").write_text("{}"),
    "a server is up": lambda world: (world.home / "state" / "steelyard" / "up.json").write_text("{}"),
    "the receipt is half": lambda world: os.truncate(next((world.home / "state").rglob("again/*.json")), 900),
    "the answer is cut": lambda world: os.truncate(next((world.home / "state").rglob("again/*.answer")), 900),
    "the answer is gone": lambda world: next((world.home / "state").rglob("again/*.answer")).unlink(),
    "the receipt is of another shape": lambda world: next((world.home / "state").rglob("again/*.json")).write_text('{"made": 9}'),
}


@pytest.mark.parametrize("what", CHANGES)
def test_where_anything_has_changed_the_command_runs(asked: Asked, what: str) -> None:
    assert asked.command()[0] == 0
    assert asked.receipt() is not None
    CHANGES[what](asked.world)
    before = len(asked.runs()) if "history" not in what and "store is gone" not in what else 0
    assert asked.receipt() is None
    if before:
        assert len(asked.runs()) == before, "nothing is noted of a run that was none"
    code, out, _ = asked.command()
    assert json.loads(out)["exit_code"] == code, "and it is not in the way of the command itself"


def test_rot_that_keeps_size_and_times_is_told_as_ever(asked: Asked) -> None:
    assert asked.command()[0] == 0
    rewrite(a_snapshot_file(asked.world))
    assert asked.receipt() is None
    code, out, _ = asked.command()
    assert code == 1 and json.loads(out)["errors"][0]["code"] == "corrupt"
    assert asked.receipt() is None


@pytest.mark.parametrize("name", ["STEELYARD_HUB__CONNECTIONS", "PREFECT_API_URL", "HOME"])
def test_what_the_environment_says_is_part_of_the_question(asked: Asked, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert asked.command()[0] == 0
    with monkeypatch.context() as other:
        other.setenv(name, "2")
        assert asked.receipt() is None
    assert asked.receipt() is not None


def test_other_words_another_folder_a_terminal_and_another_verb_are_other_questions(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert asked.command()[0] == 0
    for argv in (["backup", "--json"], [*ARGV, "mvdream"], [*ARGV, "--to", "usb"], ["verify", "--here", "--json"], []):
        assert asked.receipt(*argv or ["status"]) is None
    with monkeypatch.context() as other:
        other.setattr(sys.stdout, "isatty", lambda: True)
        assert asked.receipt() is None
    with monkeypatch.context() as other:
        other.chdir(tmp_path)
        assert asked.receipt() is None


def test_another_run_on_the_drive_is_not_passed_by(asked: Asked) -> None:
    assert asked.command()[0] == 0
    (lock,) = (asked.world.usb / ".steelyard" / "locks").glob("*.lock")
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert asked.receipt() is None
    assert asked.receipt() is not None
    lock.write_text('{"machine": "another"}')
    assert asked.receipt() is None


def test_a_drive_that_takes_no_write_is_not_called_well(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked.command()[0] == 0

    def dead(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as pulled:
        pulled.setattr(os, "fsync", dead)
        assert asked.receipt() is None
    assert asked.receipt() is not None


def test_how_full_the_disk_is_is_noted_too_where_the_last_sample_is_old(asked: Asked) -> None:
    assert asked.command()[0] == 0
    before = len(asked.runs("disk"))
    assert asked.receipt() is not None
    assert len(asked.runs("disk")) == before >= 1
    with sqlite3.connect(asked.world.models / ".steelyard" / "history.sqlite") as db:
        db.execute("update events set at='2020-01-01T00:00:00.000000+00:00' where verb='disk'")
    assert asked.receipt() is not None
    facts = json.loads(asked.runs("disk")[-1][3])
    assert len(asked.runs("disk")) > before
    assert set(facts) == set(json.loads(asked.runs("disk")[0][3])) and 0 < facts["free"] < facts["total"]


def test_a_receipt_is_good_for_a_day(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked.command()[0] == 0
    now = time.time()
    for later_s, good in ((86000, True), (86500, False), (-60, False)):
        with monkeypatch.context() as clock:
            clock.setattr(again.time, "time", lambda later_s=later_s: now + later_s)
            assert (asked.receipt() is not None) is good


def test_what_was_changed_while_it_ran_gets_no_receipt(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "RACY_S", 2.0)
    asked.world.config.write_text(asked.world.config.read_text())
    assert asked.command()[0] == 0
    assert asked.receipt() is None


@pytest.mark.parametrize(("more", "files"), [('parity = "5%"', '["*"]'), ("", f'["{FILE}"]'), ('[models.two]\nrepo_id = "x/y"\n', '["*"]')])
def test_where_more_than_the_states_of_files_decide_there_is_no_receipt(asked: Asked, checkpoint: Path, more: str, files: str) -> None:
    world = asked.world
    if FILE in files:
        world.hub.add_revision(REPO, {FILE: checkpoint})
        world.config.with_suffix(".lock").unlink()
    world.configure(more, files=files)
    asked.command("download", "--here", "--json")
    for _ in range(3):
        asked.command()
        assert asked.receipt() is None


@pytest.mark.parametrize("what", ["look_at", "mounts", "file_systems"])
def test_a_backup_that_went_well_is_not_undone_for_want_of_a_receipt(asked: Asked, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", what)

    monkeypatch.setattr(receipt, what, refused)
    code, out, _ = asked.command()
    assert code == 0 and len(without_seconds(out)["results"]) == len(SMALL)
    assert asked.receipt() is None
