"""What could be restored now, in the terminal and as JSON: by what lies there today, never by what once succeeded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from steelyard.restorable import Drilled, by_age, from_copy, of_model, worst_state
from steelyard.status import status
from tests.conftest import World

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = 86400.0
COMMIT = "c" * 40


def ago(days: float) -> str:
    return (NOW - timedelta(days=days)).isoformat()


def look(seen: dict[str, Any], *drills: Drilled, limit_days: float = 10) -> tuple[str, str]:
    one = from_copy("usb", seen, drills, commit=COMMIT, limit_s=limit_days * DAY, now=NOW)
    told = of_model([one], limit_s=limit_days * DAY, held=True, configured=True)
    assert told["state"] == one.state
    return told["state"], told["why"]


def drilled(days: float, *, ok: bool = True, commit: str = COMMIT) -> Drilled:
    return Drilled(ago(days), ok, commit, 3.0)


WHOLE = {"verdict": "ok", "last_proven": ago(1)}


def test_proven_and_drilled_within_the_limit_is_green() -> None:
    assert look(WHOLE, drilled(2)) == ("green", "")


def test_never_is_red_for_the_proof_and_for_the_drill() -> None:
    assert look(WHOLE) == ("red", "usb: never drilled")
    assert look({"verdict": "ok", "last_proven": None}, drilled(1)) == ("red", "usb: never proven")
    assert look({"verdict": "unverified", "last_proven": None}, drilled(1)) == ("red", "usb: never proven")


@pytest.mark.parametrize(("days", "state"), [(9.9, "green"), (10.1, "amber"), (19.9, "amber"), (20.1, "red")])
def test_beyond_the_limit_is_amber_and_beyond_twice_the_limit_red(days: float, state: str) -> None:
    assert look(WHOLE, drilled(days))[0] == state
    assert look({"verdict": "ok", "last_proven": ago(days)}, drilled(1))[0] == state
    assert by_age(days * DAY, 10 * DAY) == state


@pytest.mark.parametrize("verdict", ["missing", "corrupt", "unreadable", "stale"])
def test_what_lies_there_today_outweighs_every_success_of_the_past(verdict: str) -> None:
    assert look({"verdict": verdict, "last_proven": ago(0.1)}, drilled(0.1))[0] == "red"


def test_what_can_not_be_looked_at_is_unknown_until_its_proof_is_too_old() -> None:
    assert look({"verdict": "unverified", "last_proven": ago(1), "away": True}, drilled(1))[0] == "unknown"
    assert look({"verdict": "unverified", "last_proven": ago(21), "away": True}, drilled(1))[0] == "red"
    assert look({"verdict": "unverified", "last_proven": None, "away": True}, drilled(1))[0] == "red"
    assert look({"verdict": "unverified", "last_proven": ago(1)}, drilled(1))[0] == "unknown"


def test_a_failed_drill_is_red_until_one_succeeds() -> None:
    assert look(WHOLE, drilled(1, ok=False), drilled(2)) == ("red", "usb: the last drill failed")
    assert look(WHOLE, drilled(1), drilled(2, ok=False))[0] == "green"


def test_a_drill_of_an_earlier_revision_is_amber() -> None:
    assert look(WHOLE, drilled(1, commit="d" * 40))[0] == "amber"


def test_the_best_replica_answers_for_the_model_and_none_is_red() -> None:
    bad = from_copy("usb", {"verdict": "missing", "last_proven": ago(1)}, [drilled(1)], commit=COMMIT, limit_s=DAY * 10, now=NOW)
    good = from_copy("s3", WHOLE, [drilled(3)], commit=COMMIT, limit_s=DAY * 10, now=NOW)
    told = of_model([bad, good], limit_s=DAY * 10, held=True, configured=True)
    assert (told["state"], told["copy"], told["copies"]["usb"]["state"]) == ("green", "s3", "red")
    assert of_model([], limit_s=1, held=True, configured=False)["state"] == "red"
    assert of_model([], limit_s=1, held=False, configured=True)["why"] == "never downloaded"
    assert worst_state("green", "unknown", "amber") == "unknown"


def test_a_replica_emptied_by_hand_is_red_at_the_next_look(world: World) -> None:
    for verb in ("download", "backup", "drill"):
        assert world.run(verb).code == 0
    assert world.run("verify", "--copy", "usb").code == 0
    before = world.run("status")
    assert before.json["restorable"]["mvdream"]["state"] == "green"
    assert before.json["models"][0]["restorable"]["copies"]["usb"]["state"] == "green"
    shutil.rmtree(world.usb)
    after = world.run("status").json["restorable"]["mvdream"]
    assert (after["state"], after["why"]) == ("red", "usb: nothing whole is there now")
    assert after["drill_at"] == before.json["restorable"]["mvdream"]["drill_at"], "the history says that it once succeeded"
    world.environment["COLUMNS"] = "300"
    text, _ = world.start("status").communicate(timeout=60)
    assert "usb: nothing whole is there now" in text


def test_one_flipped_byte_that_verify_found_is_red_and_the_licence_is_told(world: World) -> None:
    world.configure(files='["*"]')
    for verb in ("download", "backup", "drill"):
        assert world.run(verb).code == 0
    copy = next(world.usb.rglob("*.pt"))
    world.flip(copy, 9_000_000)
    changed = status(world.site()).extra["models"][0]
    assert changed["restorable"]["state"] == "unknown", "it changed since it was proven, and nothing was read yet"
    assert changed["licence"] == "openrail"
    assert world.run("verify", "--copy", "usb").code == 1
    told = status(world.site()).extra["restorable"]["mvdream"]
    assert (told["state"], told["why"]) == ("red", "usb: corrupt")


def test_runs_are_kept_and_a_refused_one_makes_no_folder(world: World) -> None:
    world.run("verify", "nobody")
    world.run("backup")
    assert not world.models.exists() or not list(world.models.iterdir())
    world.run("download")
    world.run("verify")
    kept = world.site().history.recent("run")
    assert [(one.facts["verb"], one.outcome) for one in kept] == [("verify", "ok"), ("download", "ok")]
    assert float(str(kept[0].facts["seconds"])) > 0


def test_a_status_loads_only_what_it_needs(tmp_path: Path) -> None:
    """Not pydantic-settings (and asyncio with it), no S3 client, no templates: each would be a tenth of a second before the first line."""
    config = tmp_path / "steelyard.toml"
    s3 = '[replicas.s3]\nkind = "s3"\nbucket = "b"\n'
    config.write_text(f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[models.a]\nrepo_id = "a/b"\n{s3}', encoding="utf-8")
    heavy = ("pydantic_settings", "asyncio", "steelyard.copies.s3", "jinja2", "prometheus_client", "yaml", "urllib.request", "prefect")
    code = (
        "import sys\nfrom steelyard.cli import main\ntry: main(['status', '--json'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STEELYARD_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
