"""A new machine fills itself from the nearest copy: [hub] prefer_replicas. Whatever a replica says, the lock's digests decide."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.download import download
from steelyard.standins.hub import LoopbackHub
from tests.conftest import FILE, World
from tests.fleet.conftest import folder, machine

PREFER = "prefer_replicas = true"


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.s3)])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return folder(tmp_path / "nas")
    toml: str = request.getfixturevalue("bucket")
    return toml.replace('prefix = "m"', f'prefix = "{tmp_path.name[-20:]}"')


def grown(tmp_path: Path, hub: LoopbackHub, shared: str) -> tuple[World, World]:
    """A machine that has filled the shared replica, and a new one with only the config and the lock from git."""
    old = machine(tmp_path / "old", hub, "old", shared)
    assert download(old.site()).ok
    assert backup(old.site()).ok
    new = machine(tmp_path / "new", hub, "new", shared, more_hub=PREFER)
    shutil.copy(old.config.with_suffix(".lock"), new.config.with_suffix(".lock"))
    return old, new


def test_a_new_machine_asks_the_hub_for_nothing(tmp_path: Path, filled_hub: LoopbackHub, shared: str) -> None:
    old, new = grown(tmp_path, filled_hub, shared)
    filled_hub.down()
    report = download(new.site())
    assert report.ok, report.errors
    assert new.weights.read_bytes() == old.weights.read_bytes()
    name = "nas" if "nas" in shared else "s3"
    rows = {row.file: row.as_json() for row in report.rows}
    assert rows[FILE]["sources"] == rows["README.md"]["sources"] == [name]
    assert rows[FILE]["bytes_fetched"] == rows[FILE]["size_bytes"]
    assert rows[FILE]["action"] == "downloaded"
    assert download(new.site()).rows[0].outcome == "unchanged"


def test_a_rotten_piece_in_the_replica_comes_from_the_hub(tmp_path: Path, filled_hub: LoopbackHub) -> None:
    old, new = grown(tmp_path, filled_hub, folder(tmp_path / "nas"))
    (copy,) = (tmp_path / "nas").rglob(FILE)
    new.flip(copy, 9_000_000)
    before = filled_hub.bytes_sent("cdn")
    report = download(new.site())
    assert report.ok, report.errors
    row = next(row.as_json() for row in report.rows if row.file == FILE)
    assert row["sources"] == ["nas", "hub"]
    assert 8_000_000 < filled_hub.bytes_sent("cdn") - before < 9_000_000, "one piece"
    assert new.weights.read_bytes() == old.weights.read_bytes()


def test_a_replica_that_lies_is_found_out(tmp_path: Path, filled_hub: LoopbackHub) -> None:
    """Other bytes with a manifest that vouches for their pieces: the whole SHA-256 of the lock is what counts."""
    from blake3 import blake3

    from steelyard.manifest import Manifest

    old, new = grown(tmp_path, filled_hub, folder(tmp_path / "nas"))
    (copy,) = (tmp_path / "nas").rglob(FILE)
    new.flip(copy, 100)
    (path,) = (tmp_path / "nas").rglob("manifest.json")
    text = path.read_text()
    manifest = Manifest.parse(text.encode(), path)
    entry = manifest.get(FILE)
    assert entry is not None
    with copy.open("rb") as file:
        forged = blake3(file.read(entry.piece_bytes)).hexdigest()
    lying = replace(manifest, files=tuple(replace(e, pieces=(forged, *e.pieces[1:])) if e.path == FILE else e for e in manifest.files))
    path.write_bytes(lying.dump())
    report = download(new.site())
    assert report.ok, report.errors
    assert new.weights.read_bytes() == old.weights.read_bytes(), "it came from the Hub after all"


def test_without_the_setting_the_hub_is_asked_as_ever(tmp_path: Path, filled_hub: LoopbackHub) -> None:
    _, new = grown(tmp_path, filled_hub, folder(tmp_path / "nas"))
    new.config.write_text(new.config.read_text().replace(PREFER, ""))
    before = filled_hub.bytes_sent("cdn")
    report = download(new.site())
    assert report.ok
    assert filled_hub.bytes_sent("cdn") - before > 20_000_000
    assert all("sources" not in row.facts for row in report.rows)


def test_what_no_replica_has_comes_from_the_hub(tmp_path: Path, filled_hub: LoopbackHub) -> None:
    _, new = grown(tmp_path, filled_hub, folder(tmp_path / "nas"))
    shutil.rmtree(tmp_path / "nas")
    report = download(new.site())
    assert report.ok
    assert all("sources" not in row.facts for row in report.rows)
