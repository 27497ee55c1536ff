"""Config and lock of a fleet from git or a bucket, before each run; what is broken there never takes the place of what is here."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deployments.catalogue import bring
from steelyard.download import download
from steelyard.standins.hub import LoopbackHub
from tests.conftest import World
from tests.fleet.conftest import folder, machine


@pytest.fixture
def new(tmp_path: Path, filled_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> World:
    world = machine(tmp_path / "new", filled_hub, "new", folder(tmp_path / "nas"))
    monkeypatch.setenv("STEELYARD_CONFIG", str(world.config))
    return world


def test_without_one_nothing_is_done(new: World) -> None:
    assert bring() == {"catalogue": "none"}


def test_a_clone_is_brought_up_to_date(new: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], check=True, capture_output=True)

    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git("init", "-q", str(origin))
    (origin / "steelyard.toml").write_text("# one\n")
    git("-C", str(origin), "add", "."), git("-C", str(origin), "commit", "-qm", "one")
    git("clone", "-q", str(origin), str(clone))
    (origin / "steelyard.toml").write_text("# two\n")
    git("-C", str(origin), "commit", "-qam", "two")
    monkeypatch.setenv("STEELYARD_CATALOGUE", str(clone))
    assert bring() == {"catalogue": "pulled"}
    assert (clone / "steelyard.toml").read_text() == "# two\n"
    (origin / "steelyard.toml").unlink()
    origin.rename(tmp_path / "away")
    assert bring() == {"catalogue": "CalledProcessError"}, "the run goes by what is here"
    assert (clone / "steelyard.toml").read_text() == "# two\n"


@pytest.mark.s3
def test_a_bucket_gives_both_or_nothing(new: World, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    endpoint = tomllib.loads(bucket)["replicas"]["s3"]["endpoint_url"]
    client: Any = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("STEELYARD_CATALOGUE", "s3://weights/catalogue")
    assert download(new.site()).ok
    config, lock = new.config.read_bytes(), new.config.with_suffix(".lock").read_bytes()
    new.config.with_suffix(".lock").unlink()

    def put(name: str, data: bytes) -> None:
        client.put_object(Bucket="weights", Key=f"catalogue/{name}", Body=data)

    put("steelyard.toml", config + b"# reviewed\n")
    assert bring() == {"catalogue": "ValueError"}, "it has no lock yet"
    assert new.config.read_bytes() == config
    put("steelyard.lock", lock.replace(b"{", b"", 1))
    assert "lock" in bring()["catalogue"]
    assert new.config.read_bytes() == config, "a config without its lock is not taken"
    put("steelyard.lock", lock)
    assert bring() == {"catalogue": "changed"}
    assert new.config.with_suffix(".lock").read_bytes() == lock
    assert Path(f"{new.config}.before").read_bytes() == config
    assert bring() == {"catalogue": "as it was"}
    assert os.stat(new.config).st_size == len(config) + 11
