"""status --fleet: each machine's inventory in the replicas, read by all; how old it is; what is damaged or hostile in it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from steelyard.backup import backup
from steelyard.download import download
from steelyard.fleet import fleet
from steelyard.inventory import publish
from steelyard.standins.hub import LoopbackHub
from tests.conftest import World
from tests.fleet.conftest import folder, machine


@pytest.fixture
def two(tmp_path: Path, filled_hub: LoopbackHub) -> tuple[World, World]:
    """atlas holds the model and has said so; borea is new."""
    nas = folder(tmp_path / "nas")
    atlas, borea = (machine(tmp_path / name, filled_hub, name, nas) for name in ("atlas", "borea"))
    assert download(atlas.site()).ok
    assert backup(atlas.site()).ok
    assert publish(atlas.site()) == {"nas": "published"}
    return atlas, borea


def note(world: World, host: str = "atlas") -> Path:
    return world.home.parent / "nas" / "_fleet" / f"{host}.json"


def change(world: World, **facts: Any) -> None:
    path = note(world)
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def rows(world: World) -> dict[str, dict[str, Any]]:
    return {row["host"]: row for row in (one.as_json() for one in fleet(world.site()).rows)}


def test_one_machine_sees_what_the_other_holds(two: tuple[World, World]) -> None:
    _, borea = two
    report = fleet(borea.site())
    assert report.exit_code == 0
    found = rows(borea)
    assert found["borea"]["verdict"] == "missing"
    assert found["atlas"]["verdict"] == "ok"
    assert found["atlas"]["copies"]["nas"]["verdict"] == "ok"
    assert found["atlas"]["last_proven"] is not None
    assert found["atlas"]["verified_copies"] == 1, "store and folder lie on one disk"
    hosts = {one["host"]: one for one in report.extra["hosts"]}
    assert list(hosts) == ["borea", "atlas"], "this machine comes first"
    assert hosts["atlas"]["from"] == "nas" and hosts["borea"]["from"] == "here"
    assert hosts["atlas"]["stale"] is False and hosts["atlas"]["age_s"] < 60
    assert hosts["atlas"]["store"]["free_bytes"] > 0


def test_the_command_prints_one_document_and_a_table(two: tuple[World, World]) -> None:
    _, borea = two
    done = borea.run("status", "--fleet", "--publish")
    assert done.code == 0, done.stderr
    assert done.json["published"] == {"nas": "published"}
    assert {row["host"] for row in done.rows if "model" in row} == {"atlas", "borea"}
    assert note(borea, "borea").is_file()
    process = borea.start("status", "--fleet")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "atlas" in out and "looked at now" in out and "read from nas" in out


def test_an_old_inventory_is_stale_and_says_so(two: tuple[World, World]) -> None:
    atlas, borea = two
    change(atlas, published_at=(datetime.now(UTC) - timedelta(days=4)).isoformat())
    assert rows(borea)["atlas"]["stale"] is True
    out, _ = borea.start("status", "--fleet").communicate(timeout=60)
    assert "ok?" in out and "stale: is its nightly round running?" in out


def test_a_clock_that_is_ahead_makes_no_inventory_fresh(two: tuple[World, World]) -> None:
    atlas, borea = two
    change(atlas, published_at=(datetime.now(UTC) + timedelta(days=4)).isoformat())
    host = fleet(borea.site()).extra["hosts"][1]
    assert host["stale"] is True and "ahead of ours" in host["why"] and host["age_s"] == 0


def test_two_machines_of_one_name_are_warned(two: tuple[World, World], caplog: pytest.LogCaptureFixture) -> None:
    _, borea = two
    borea.config.write_text(borea.config.read_text().replace('host = "borea"', 'host = "atlas"'))
    with caplog.at_level("WARNING", logger="steelyard"):
        import logging

        logging.getLogger("steelyard").addHandler(caplog.handler)
        publish(borea.site())
        logging.getLogger("steelyard").removeHandler(caplog.handler)
    assert "two machines call themselves atlas" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"version": 1}', b"\xff\xfe", b'{"version": 0, "host": "atlas"}', b"9" * 5000],
    ids=["empty", "cut", "list", "null", "deep", "keys", "bytes", "version", "number"],
)
def test_a_damaged_inventory_is_an_error_and_the_others_are_shown(two: tuple[World, World], content: bytes) -> None:
    atlas, borea = two
    note(atlas, "cetus").write_bytes(content)
    report = fleet(borea.site())
    assert [error.code for error in report.errors] == ["bad-record"] and report.exit_code == 1
    assert "cetus" in report.errors[0].message
    assert {row.facts["host"] for row in report.rows} == {"atlas", "borea"}


def test_an_inventory_can_not_speak_for_another_host(two: tuple[World, World]) -> None:
    atlas, borea = two
    note(atlas, "dorado").write_bytes(note(atlas).read_bytes())
    assert "it is atlas's" in fleet(borea.site()).errors[0].message


def test_names_and_links_that_others_leave_there_are_not_followed(two: tuple[World, World], tmp_path: Path) -> None:
    atlas, borea = two
    (tmp_path / "secret").write_bytes(note(atlas).read_bytes())
    board = note(atlas).parent
    (board / "ember.json").symlink_to(tmp_path / "secret")
    (board / "..json").write_text("{}")
    (board / ".hidden.json").write_text("{}")
    (board / "a b.json").write_text("{}")
    os.mkfifo(board / "fifo.json")
    (board / "grus.json").mkdir()
    report = fleet(borea.site())
    assert {row.facts["host"] for row in report.rows} == {"atlas", "borea"}
    assert sorted(str(error.facts["path"]).rpartition("/")[2] for error in report.errors) == ["ember.json", "fifo.json", "grus.json"]


def test_an_inventory_of_a_later_version_is_still_read(two: tuple[World, World]) -> None:
    atlas, borea = two
    change(atlas, version=2, news="something")
    assert rows(borea)["atlas"]["verdict"] == "ok"


def test_a_drive_that_is_away_is_passed_over(two: tuple[World, World], tmp_path: Path) -> None:
    _, borea = two
    text = borea.config.read_text()
    borea.config.write_text(f'{text}\n[replicas.usb]\nkind = "mount"\npath = "{tmp_path}/mnt/x"\nmount_point = "{tmp_path}/mnt"\n')
    report = fleet(borea.site())
    assert report.exit_code == 0 and len(report.rows) == 2
    told = publish(borea.site())
    assert told["nas"] == "published" and "mount" in told["usb"]
    assert not (tmp_path / "mnt").exists(), "nothing is written into the bare mount point"


@pytest.mark.s3
def test_a_bucket_carries_inventories_as_a_folder_does(tmp_path: Path, filled_hub: LoopbackHub, bucket: str) -> None:
    atlas, borea = (machine(tmp_path / name, filled_hub, name, bucket) for name in ("atlas", "borea"))
    assert download(atlas.site()).ok
    for world in (atlas, borea, atlas):
        assert publish(world.site()) == {"s3": "published"}
    report = fleet(borea.site())
    assert report.exit_code == 0, report.errors
    assert {one["host"]: one["from"] for one in report.extra["hosts"]} == {"borea": "here", "atlas": "s3"}
    away = machine(tmp_path / "away", filled_hub, "away", bucket.replace('bucket = "weights"', 'bucket = "no-such"'))
    found = fleet(away.site())
    assert found.exit_code == 4 and len(found.rows) == 1, "what it does know is shown all the same"


def test_a_host_name_is_checked(two: tuple[World, World]) -> None:
    atlas, _ = two
    atlas.config.write_text(atlas.config.read_text().replace('host = "atlas"', 'host = "../atlas"'))
    done = atlas.run("status", "--fleet")
    assert (done.code, done.errors[0]["code"]) == (2, "config")
    assert "fleet.host" in done.errors[0]["message"]
