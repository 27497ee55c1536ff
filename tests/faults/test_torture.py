"""The short form of `make torture`, and proof that the harness itself would notice: a keeper of weights that lies must be caught.

STEELYARD_TORTURE_SECONDS (60 by default) is how long the short form goes on; STEELYARD_TORTURE_SEED is where it starts. All of it: `make torture`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from torture.driver import Driver
from torture.rules import Broken, fsync_rule
from torture.scenes import SCENES, big_file
from torture.shim import Plan, rot
from torture.world import PIECE_BYTES, scratch_place

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("STEELYARD_TORTURE_SECONDS", "60"))
SEED = os.environ.get("STEELYARD_TORTURE_SEED", "1")


@pytest.mark.timeout(SECONDS * 4 + 300)
def test_the_short_form_breaks_no_invariant(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, "-m", "torture", "--minutes", str(SECONDS / 60), "--seed", SEED, "--jobs", "2", "--json", str(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = json.loads(told.read_text())["totals"]
    assert counted["kill_points"] > 0
    assert counted["other_faults"] > 0
    print(done.stdout)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver(scratch_place(None), drive=False) as driver:
        yield driver


@pytest.mark.parametrize("name", [scene.name for scene in SCENES if "drive" not in scene.command])
def test_each_scene_reaches_its_goal_and_syncs_before_and_after_each_rename(driver: Driver, name: str) -> None:
    """An update once kept the old files without syncing their folders."""
    assert driver.count(next(one for one in SCENES if one.name == name), "kill before") > 10


def test_a_kill_falls_where_it_was_asked_for_and_the_next_run_goes_on(driver: Driver) -> None:
    backup = next(one for one in SCENES if one.name == "backup to a folder")
    calls = driver.count(backup, "kill before")
    assert calls > 30
    driver.begin(backup)
    ran = driver.run(backup.command, plan=Plan(str(driver.world.root), "kill before", 20))
    assert ran.code == -9
    driver.oracle.judge()
    driver.settle(backup)
    driver.begin(backup)
    refused = driver.run(backup.command, plan=Plan(str(driver.world.root), "ENOSPC", 5, lasting=True))
    assert refused.code == 3
    assert "no-space" in json.dumps(refused.documents)


def test_wrong_bytes_under_a_final_name_are_caught(driver: Driver) -> None:
    driver.begin(next(one for one in SCENES if one.name == "verify"))
    (path,) = big_file(driver.world, "usb")
    rot(path, PIECE_BYTES + 9)
    with pytest.raises(Broken, match="wrong bytes under the final name"):
        driver.oracle.judge()


def test_a_copy_that_is_gone_is_caught(driver: Driver) -> None:
    driver.begin(next(one for one in SCENES if one.name == "verify"))
    (path,) = big_file(driver.world, "usb")
    path.unlink()
    with pytest.raises(Broken, match="was whole and is gone"):
        driver.oracle.judge()


def test_a_verdict_that_is_not_true_is_caught(driver: Driver) -> None:
    driver.begin(next(one for one in SCENES if one.name == "verify"))
    (path,) = big_file(driver.world, "usb")
    lie = {
        "command": "verify",
        "ok": True,
        "exit_code": 0,
        "errors": [],
        "results": [{"copy": "usb", "file": "big.dat", "path": str(path), "verdict": "ok"}],
    }
    driver.oracle.told(lie, "told")
    rot(path, 5)
    with pytest.raises(Broken, match="verdict ok"):
        driver.oracle.told(lie, "told")


def test_the_order_of_fsync_and_rename_is_checked() -> None:
    good = [["write", "/r/.x", "1"], ["fsync", "/r/.x", "1"], ["rename", "/r/.x", "/r/x", "1"], ["fsync", "/r", "9"]]
    assert fsync_rule(good, "/r") == []
    assert fsync_rule([good[0], good[2], good[3]], "/r") == ["/x was published before its fsync"]
    assert fsync_rule(good[:3], "/r") == ["/x was named and its folder not fsynced"]
    assert fsync_rule([good[0], ["sync", "/r"], *good[2:]], "/r") == []
