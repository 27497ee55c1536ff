"""The nightly round itself, without a server: what it forgives, and what it leaves for the other machines."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from flows.keep_models import KeepModels, keep
from steelyard import steps
from steelyard.backup import backup
from steelyard.download import download
from steelyard.report import Report
from steelyard.steps import run_here
from tests.conftest import World
from tests.prefect.test_house import ROOT, declared


@pytest.fixture
def kept(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(steps, "TRIES", 1)
    assert download(world.site()).ok
    assert backup(world.site()).ok
    world.config.write_text(world.config.read_text().replace("patience = 4", "patience = 0.1"))
    return world


def one_round(world: World, **options: float) -> Report:
    return keep(world.site(), (), mend="report", run=run_here, **options)


def test_by_hand_a_hub_that_is_away_is_exit_4(kept: World) -> None:
    kept.hub.down()
    assert one_round(kept).exit_code == 4


def test_the_schedule_forgives_a_hub_that_is_away_for_a_while(kept: World) -> None:
    assert declared()["flows.keep_models.keep_models/nightly"]["parameters"]["options"]["hub_away_days"] == 3
    kept.hub.down()
    report = one_round(kept, hub_away_days=3)
    assert report.exit_code == 0
    row = report.rows[-1].as_json()
    assert (row["verdict"], row["tolerated"]) == ("unreachable", True)
    assert datetime.fromisoformat(row["since"]) > datetime.now(UTC) - timedelta(minutes=5)
    with sqlite3.connect(kept.models / ".steelyard" / "history.sqlite") as db:
        db.execute("update events set at=? where verb='check-updates'", ((datetime.now(UTC) - timedelta(days=3, hours=1)).isoformat(),))
    db.close()
    assert one_round(kept, hub_away_days=3).exit_code == 4, "it has been away for longer than that"
    kept.hub.up()
    assert one_round(kept, hub_away_days=3).exit_code == 0
    kept.hub.down()
    assert one_round(kept, hub_away_days=3).exit_code == 0, "the clock begins anew"


def test_access_that_is_denied_is_never_forgiven(kept: World) -> None:
    kept.hub.repo("MVDream/MVDream").private = True
    assert one_round(kept, hub_away_days=3).exit_code == 4


def test_what_is_held_is_judged_as_ever_while_the_hub_is_away(kept: World) -> None:
    kept.hub.down()
    kept.flip(kept.weights, 100)
    assert one_round(kept, hub_away_days=3).exit_code == 1


def test_the_round_leaves_the_inventory(kept: World) -> None:
    report = one_round(kept)
    assert report.extra["inventory"] == {"usb": "published"}
    (note,) = (kept.usb / "_fleet").iterdir()
    assert json.loads(note.read_text())["models"][0]["copies"]["usb"]["verdict"] == "ok"
    assert kept.run("clean").rows == [], "it is no stray"
    with kept.config.open("a") as config:
        config.write("[fleet]\npublish = false\n")
    assert "inventory" not in one_round(kept).extra


def test_by_hand_it_works_where_the_api_is_away(kept: World) -> None:
    environment = {**kept.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(kept.home / "prefect")}
    command = [sys.executable, "-m", "flows.keep_models", "--config", str(kept.config), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "keep"
    assert "does not answer: running without it" in done.stderr


def test_the_form_has_bounds() -> None:
    with pytest.raises(ValueError, match="hub_away_days"):
        KeepModels(hub_away_days=-1)
