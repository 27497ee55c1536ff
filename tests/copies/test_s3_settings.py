"""What the config of a bucket asks for stands in the requests that go out; what a bucket is like is told and not changed unasked."""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import subprocess
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from contract import PART, Bytes, S3Kind, entry_of, manifest_of, reader_of
from pydantic import ValidationError

from steelyard.config import S3Config
from steelyard.copies.base import Look
from steelyard.copies.s3_bucket import object_lock_of, turn_versioning_on, versioning_of
from steelyard.errors import AccessDenied, BadAnswer, OutsideHours
from steelyard.pace import Window
from steelyard.standins.s3_faults import answer
from steelyard.standins.s3_proxy import S3Proxy
from steelyard.standins.s3_wire import Seen
from steelyard.standins.weed import SeaweedServer

pytestmark = pytest.mark.s3
SMALL = random.Random(7).randbytes(200_000)
LARGE = random.Random(8).randbytes(PART + 70_000)
ONE, TWO = entry_of("small.bin", SMALL), entry_of("weights.pt", LARGE)
MANIFEST = manifest_of(ONE, TWO)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"endpoint_url": "not a url"}, "not an address"),
        ({"endpoint_url": "ftp://s3.example.org"}, "not an address"),
        ({"endpoint_url": "http://"}, "not an address"),
        ({"endpoint_url": "s3.example.org"}, "not an address"),
        ({"endpoint_url": "http://u:secret@s3.example.org:99999"}, "not an address"),
        ({"bucket": "two words/and a path"}, "no name of a bucket"),
        ({"bucket": "s3://weights"}, "no name of a bucket"),
        ({"bucket": ""}, "at least 1 character"),
    ],
)
def test_an_address_or_a_bucket_that_can_be_none_is_an_error_of_the_config(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        S3Config(**{"kind": "s3", "bucket": "weights"} | wrong)  # type: ignore[arg-type]
    told = str([one["msg"] for one in caught.value.errors()])
    assert says in told and "secret" not in told


def test_what_boto3_takes_for_a_bucket_is_taken() -> None:
    point = "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-point"
    for bucket in ("weights", "w.e-i_G", point):
        assert S3Config(kind="s3", bucket=bucket, endpoint_url="HTTPS://[::1]:9000/base").bucket == bucket


def sent(kind: S3Kind, proxy: S3Proxy, *, refused: bool = True) -> list[Seen]:
    """Requests that bringing a small and a large file begins with; with *refused* the server does not see those that make an object of the model."""
    replica = kind.copy()
    for method in ("PUT", "POST") if refused else ():
        proxy.fault(answer(403), method=method, key="/mvdream/", times=float("inf"))
    for entry, data in ((ONE, SMALL), (TWO, LARGE)):
        try:
            replica.bring(MANIFEST, entry, reader_of(entry, Bytes(data)))
        except AccessDenied:
            assert refused
    return proxy.requests


def header(seen: Seen, name: str) -> str | None:
    return next((line.partition(":")[2].strip() for line in seen.headers.splitlines() if line.startswith(f"{name}:")), None)


def begins(requests: list[Seen], ours: bool = False) -> list[Seen]:
    """The requests that make an object: PUT of a whole one, and the beginning of an upload in parts."""
    made = [one for one in requests if (one.method == "PUT" and not one.query) or (one.method == "POST" and one.query == "uploads")]
    return [one for one in made if ("/.steelyard/" in one.key) is ours]


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "standard_ia"}),
        ({"storage_class": "DEEP_ARCHIVE"}, {"x-amz-storage-class": "deep_archive"}),
        ({"sse": "AES256"}, {"x-amz-server-side-encryption": "aes256"}),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "alias/steelyard"},
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "alias/steelyard"},
        ),
        ({"object_lock_days": 30}, {"x-amz-object-lock-mode": "governance"}),
        ({"object_lock_days": 30, "object_lock_mode": "COMPLIANCE"}, {"x-amz-object-lock-mode": "compliance"}),
    ],
    ids=str,
)
def test_each_new_object_is_given_what_the_config_says_and_our_own_records_are_not(
    far: S3Kind, proxy: S3Proxy, settings: dict[str, Any], headers: dict[str, str]
) -> None:
    far.extra |= settings
    requests = sent(far, proxy)
    made = begins(requests)
    assert {one.method for one in made} == {"PUT", "POST"}, "a whole one and one in parts"
    for one in made:
        assert {name: header(one, name) for name in headers} == headers
    if "object_lock_days" in settings:
        until = header(made[0], "x-amz-object-lock-retain-until-date")
        assert until is not None
        days = (datetime.fromisoformat(until.upper()) - datetime.now(UTC)).total_seconds() / 86400
        assert 29.9 < days < 30.1
        assert header(made[0], "x-amz-checksum-crc64nvme") or header(made[0], "content-md5"), "a locking bucket takes no body without"


def test_our_own_records_stay_readable_and_free_of_locks(far: S3Kind, proxy: S3Proxy) -> None:
    far.extra |= {"storage_class": "STANDARD_IA"}
    far.copy().bring(MANIFEST, TWO, reader_of(TWO, Bytes(LARGE)))
    far.copy().bring(MANIFEST, ONE, reader_of(ONE, Bytes(SMALL)))
    far.copy().seal(MANIFEST)
    assert {header(one, "x-amz-storage-class") for one in begins(proxy.requests, ours=True)} == {None}
    records = [one for one in begins(proxy.requests) if one.key.endswith(("manifest.json", "SHA256SUMS", "RESTORE.txt"))]
    assert [header(one, "x-amz-storage-class") for one in records] == [None] * 3


def test_requester_pays_stands_in_every_request_that_knows_it(far: S3Kind, proxy: S3Proxy) -> None:
    far.extra |= {"request_payer": "requester"}
    sent(far, proxy, refused=False)
    replica = far.copy()
    replica.judge(MANIFEST, TWO, Look("deep"))
    replica.commits("mvdream")
    assert {one.method for one in proxy.requests} == {"GET", "PUT", "POST", "HEAD", "DELETE"}
    assert [one for one in proxy.requests if header(one, "x-amz-request-payer") != "requester"] == []


@pytest.mark.parametrize("path_style", [True, False])
def test_the_bucket_stands_in_the_path_or_in_the_host(
    weed: SeaweedServer, proxy: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_style: bool
) -> None:
    found = socket.getaddrinfo

    def here(host: Any, *more: Any, **options: Any) -> Any:
        return found("127.0.0.1" if str(host).endswith("localhost") else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    kind = S3Kind(f"http://localhost:{proxy.port}", "weights", "p", tmp_path, None, extra={"path_style": path_style})
    proxy.fault(answer(403), times=9)
    with pytest.raises(AccessDenied):
        kind.copy().ready(write=False)
    host = header(proxy.requests[0], "host")
    assert (host, proxy.requests[0].key) == (
        (f"localhost:{proxy.port}", "/weights") if path_style else (f"weights.localhost:{proxy.port}", "/")
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_store_with_a_certificate_of_its_own_needs_its_ca_and_says_so(weed: SeaweedServer, s3: S3Kind, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert), *names]
    subprocess.run(new, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    with S3Proxy(weed.port, tls=tls) as proxy:
        s3.endpoint_url = proxy.endpoint_url
        with pytest.raises(BadAnswer, match="certificate") as caught:
            s3.copy().ready(write=False)
        assert "ca_bundle" in caught.value.hint
        s3.extra["ca_bundle"] = str(cert)
        replica = s3.copy()
        replica.bring(MANIFEST, ONE, reader_of(ONE, Bytes(SMALL)))
        assert replica.judge(MANIFEST, ONE, Look("deep")).ok


# --- the bucket's own settings


def fresh_bucket(s3: S3Kind, **options: Any) -> S3Kind:
    s3.bucket = f"b{uuid.uuid4().hex[:10]}"
    s3.client.create_bucket(Bucket=s3.bucket, **options)
    return s3


def test_versioning_is_told_and_turned_on_only_when_asked_for(s3: S3Kind) -> None:
    bucket = fresh_bucket(s3).copy().bucket
    assert (versioning_of(bucket), object_lock_of(bucket)) == ("off", "off")
    turn_versioning_on(bucket)
    assert versioning_of(bucket) == "on"
    s3.client.delete_bucket(Bucket=s3.bucket)


def test_what_we_may_not_ask_is_unknown(far: S3Kind, proxy: S3Proxy) -> None:
    proxy.fault(answer(403), query="versioning", times=9)
    proxy.fault(answer(403), query="object-lock", times=9)
    bucket = far.copy().bucket
    assert (versioning_of(bucket), object_lock_of(bucket)) == ("unknown", "unknown")


def test_an_object_is_locked_until_the_day_in_a_bucket_that_was_made_for_it(s3: S3Kind) -> None:
    fresh_bucket(s3, ObjectLockEnabledForBucket=True)
    assert object_lock_of(s3.copy().bucket) == "on"
    s3.extra["object_lock_days"] = 1
    replica = s3.copy()
    replica.bring(MANIFEST, ONE, reader_of(ONE, Bytes(SMALL)))
    replica.bring(MANIFEST, TWO, reader_of(TWO, Bytes(LARGE)))
    for path in ("small.bin", "weights.pt"):
        told = s3.client.head_object(Bucket=s3.bucket, Key=s3.key(MANIFEST, path))
        assert told["ObjectLockMode"] == "GOVERNANCE" and told["ObjectLockRetainUntilDate"] > datetime.now(UTC)
        with pytest.raises(Exception, match="AccessDenied"):
            s3.client.delete_object(Bucket=s3.bucket, Key=s3.key(MANIFEST, path), VersionId=told["VersionId"])


# --- pace and hours


def test_bandwidth_holds_uploads_and_proofs_to_its_pace_and_not_a_restore(s3: S3Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.extra["bandwidth"] = "500 MB/s"
    replica = s3.copy()
    taken: list[int] = []
    monkeypatch.setattr(replica.bucket.throttle, "take", lambda count, watch: taken.append(count))
    replica.bring(MANIFEST, TWO, reader_of(TWO, Bytes(LARGE)))
    assert s3.read(MANIFEST, "weights.pt") == LARGE
    assert sum(taken) >= len(LARGE)
    taken.clear()
    assert replica.judge(MANIFEST, TWO, Look("deep")).ok
    assert sum(taken) == len(LARGE)
    taken.clear()
    assert replica.open(MANIFEST, TWO).readinto(0, memoryview(bytearray(len(LARGE)))) == len(LARGE)
    assert taken == []


def test_a_body_at_a_pace_that_is_damaged_on_the_way_is_sent_again_from_its_first_byte(far: S3Kind, proxy: S3Proxy) -> None:
    from steelyard.standins.s3_faults import flip_up, reset

    far.extra["bandwidth"] = "200 MB/s"
    proxy.fault(flip_up(100_000), method="PUT", key="small.bin")
    proxy.fault(reset(), method="PUT", query="partNumber=2")
    sent(far, proxy, refused=False)
    assert (far.read(MANIFEST, "small.bin"), far.read(MANIFEST, "weights.pt")) == (SMALL, LARGE)


def test_a_round_whose_hours_end_stops_between_two_parts_and_the_next_goes_on(s3: S3Kind) -> None:
    replica = s3.copy()
    now = datetime.now()
    minute = (now.hour * 60 + now.minute + 720) % 1440
    replica.bucket.hours = Window(minute, (minute + 1) % 1440)
    with pytest.raises(OutsideHours, match="hours"):
        replica.bring(MANIFEST, TWO, reader_of(TWO, Bytes(LARGE)))
    replica.bucket.hours = None
    assert replica.bring(MANIFEST, TWO, reader_of(TWO, Bytes(LARGE))).action in {"copied", "resumed"}


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="Expedited"):
        S3Config(kind="s3", bucket="b", storage_class="DEEP_ARCHIVE", archive_tier="Expedited")
    with pytest.raises(ValueError, match="aws:kms"):
        S3Config(kind="s3", bucket="b", sse_kms_key_id="alias/x")
    with pytest.raises(ValueError, match="rate"):
        S3Config(kind="s3", bucket="b", bandwidth="5 MB")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="span of hours"):
        S3Config(kind="s3", bucket="b", window="at night")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written", ["2026-11-23T05:10:50.000Z", "2026-11-23T05:10:50+00:00", "Mon, 23 Nov 2026 05:10:50 GMT", "1795410650"]
)
def test_times_are_read_as_botocore_reads_them(written: str) -> None:
    from botocore.utils import parse_timestamp

    from steelyard.copies.s3_client import _timestamp

    assert _timestamp(written) == parse_timestamp(written)
