"""Stores differ: what one can't do is found out and replaced. And what it says when it can't be used is a sentence with a next step."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from typing import Any

import pytest
from botocore import exceptions as theirs
from contract import COMMIT, PART, PIECE, Bytes, Interrupted, S3Kind, build, entry_of, manifest_of, reader_of

from steelyard.copies.base import Look
from steelyard.copies.s3 import S3Replica
from steelyard.copies.s3_abilities import Abilities, remember, remembered
from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import listing
from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Refused, SteelyardError, Unreachable
from steelyard.standins.s3_faults import answer
from steelyard.standins.s3_proxy import S3Proxy
from steelyard.standins.weed import SeaweedServer

FILE = "weights.pt"
DATA = random.Random(5).randbytes(2 * PART + 4321)
ENTRY = entry_of(FILE, DATA)
MANIFEST = manifest_of(ENTRY)
CHECKSUM = "x-amz-checksum"

s3_server = pytest.mark.s3


# --- abilities


@s3_server
def test_seaweedfs_can_do_all_of_it_and_that_is_asked_once(s3: S3Kind, abilities: Abilities) -> None:
    assert abilities == Abilities(True, True, True, True, True, True)
    replica = s3.copy()
    replica.ready(write=True)
    assert dict(replica.bucket.requests) == {"list_objects_v2": 1}, "what was remembered is not asked for again"


def test_remembered_abilities_that_are_damaged_or_old_are_asked_for_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "abilities.json"
    assert remembered(path) is None
    remember(path, Abilities(True, True, True, True, True, True))
    assert remembered(path) is not None
    monkeypatch.setattr("steelyard.copies.s3_abilities.RENEW_S", -1.0)
    assert remembered(path) is None
    monkeypatch.undo()
    path.write_bytes(path.read_bytes().replace(b"true", b"false", 1))
    assert remembered(path) is None


@pytest.fixture
def plain(s3: S3Kind, proxy: S3Proxy) -> S3Kind:
    """A store that knows no CRC-64: it answers 501 to each request that has one, as older ones do."""
    s3.endpoint_url = proxy.endpoint_url
    proxy.fault(answer(501), header=CHECKSUM + "-", times=10_000)
    proxy.fault(answer(501), method="GET", query="uploads&prefix", times=10_000)
    return s3


def without_checksum(kind: S3Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS keeps a CRC of what it is given; a store that knows none would return none."""
    call = Bucket.call

    def stripped(self: Bucket, operation: str, **parameters: Any) -> dict[str, Any]:
        parameters.pop("ChecksumMode", None)
        found = call(self, operation, **parameters)
        return {name: value for name, value in found.items() if not name.startswith("Checksum")}

    monkeypatch.setattr(Bucket, "call", stripped)


@s3_server
def test_a_store_without_crc64_gets_md5_and_is_proven_by_its_etags(plain: S3Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksum(plain, monkeypatch)
    replica = plain.copy()
    assert replica.abilities() == Abilities(False, True, True, True, False, True)
    assert replica.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA))).bytes_written == len(DATA)
    assert plain.read(MANIFEST, FILE) == DATA
    finding = plain.copy().judge(MANIFEST, ENTRY, Look())
    assert (finding.verdict, finding.proof, finding.bytes_read) == ("ok", "ETag by HEAD, as it was when proven", 0)
    replica.seal(MANIFEST)
    assert plain.copy().manifest(MANIFEST.model, COMMIT) == MANIFEST
    # Another machine remembers nothing: it reads once, then the ETag stands for the content.
    elsewhere = build(plain.spec() | {"ours": str(plain.ours / "elsewhere")})
    assert isinstance(elsewhere, S3Replica)
    assert elsewhere.judge(MANIFEST, ENTRY, Look()).proof == "pieces by ranged reads"
    assert elsewhere.judge(MANIFEST, ENTRY, Look()).bytes_read == 0
    changed = bytearray(DATA)
    changed[PART] ^= 1
    plain.write(MANIFEST, FILE, bytes(changed))
    found = plain.copy().judge(MANIFEST, ENTRY, Look())
    assert (found.verdict, found.bad_ranges) == ("corrupt", ((PART // PIECE * PIECE, PART // PIECE * PIECE + PIECE),))
    plain.copy().mend(MANIFEST, ENTRY, found, reader_of(ENTRY, Bytes(DATA)))
    assert plain.read(MANIFEST, FILE) == DATA


@s3_server
def test_where_uploads_are_not_listed_our_own_record_still_resumes(plain: S3Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksum(plain, monkeypatch)
    with pytest.raises(Interrupted):
        plain.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA, fail_at=2 * PART, error=Interrupted())))
    brought = plain.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert brought.action == "resumed"
    assert brought.bytes_written < len(DATA)
    assert plain.leftovers() == []


@s3_server
def test_a_store_without_conditions_is_written_without_them(s3: S3Kind) -> None:
    s3.knows(Abilities(True, False, False, True, True, False))
    s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert s3.copy().judge(MANIFEST, ENTRY, Look("deep")).ok


# --- what costs what


@s3_server
def test_a_hundred_objects_are_proven_by_one_request_each_and_no_object_bytes(far: S3Kind, proxy: S3Proxy) -> None:
    entries = [entry_of(f"part-{number:03}.bin", DATA[number : number + PIECE + number]) for number in range(100)]
    manifest = manifest_of(*entries)
    for entry, number in zip(entries, range(100), strict=True):
        far.write(manifest, entry.path, DATA[number : number + PIECE + number])
    # Written by another program, without a checksum of ours: once they are brought, HEAD tells.
    replica = far.copy()
    for entry, number in zip(entries, range(100), strict=True):
        data = DATA[number : number + PIECE + number]
        replica.bring(manifest, entry, reader_of(entry, Bytes(data)))
    proxy.clear()
    findings = [far.copy().judge(manifest, entry, Look()) for entry in entries]
    assert all(finding.ok for finding in findings), findings
    assert len(proxy.requests) <= 200
    assert proxy.bytes_down == 0
    proxy.clear()
    # Nothing to do: one listing, no HEAD a file, no byte sent.
    fresh = far.copy()
    quick = [fresh.judge(manifest, entry, Look("quick"), finding) for entry, finding in zip(entries, findings, strict=True)]
    assert all(finding.ok for finding in quick)
    brought = [fresh.bring(manifest, entry, reader_of(entry)) for entry in entries]
    assert {one.action for one in brought} == {"unchanged"}
    assert len(proxy.requests) == 1
    assert fresh.snapshot_listing(manifest) == {entry.path: entry.size_bytes for entry in entries}


@s3_server
def test_a_listing_notices_what_went_away_and_what_changed(s3: S3Kind) -> None:
    entries = [entry_of(f"part-{number:03}.bin", DATA[number : number + 100]) for number in range(20)]
    manifest, replica = manifest_of(*entries), s3.copy()
    for number, entry in enumerate(entries):
        replica.bring(manifest, entry, reader_of(entry, Bytes(DATA[number : number + 100])))
    s3.delete(manifest, entries[3].path)
    s3.write(manifest, entries[4].path, bytes(100))
    again = s3.copy()
    brought = [
        again.bring(manifest, entry, reader_of(entry, Bytes(DATA[number : number + 100]))).action for number, entry in enumerate(entries)
    ]
    assert [number for number, action in enumerate(brought) if action != "unchanged"] == [3, 4]
    s3.delete(manifest, entries[7].path)
    with pytest.raises(SteelyardError):
        again.seal(manifest)
    assert again.manifest(manifest.model, COMMIT) is None


def test_a_listing_follows_the_pages() -> None:
    pages = {None: (["a", "b"], "1"), "1": (["c"], "2"), "2": (["d"], None)}

    class Paged:
        def call(self, operation: str, **asked: Any) -> dict[str, Any]:
            names, token = pages[asked.get("ContinuationToken")]
            contents = [{"Key": name, "Size": 1, "ETag": '"e"'} for name in names]
            return {"Contents": contents, "IsTruncated": token is not None, "NextContinuationToken": token}

    assert [key for key, _, _ in listing(Paged(), "")] == ["a", "b", "c", "d"]  # type: ignore[arg-type]


# --- a sentence each


@s3_server
@pytest.mark.parametrize("write", [False, True])
def test_ready_tells_what_is_wrong_and_what_to_do(s3: S3Kind, weed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, write: bool) -> None:
    def fails(kind: type[SteelyardError], hint: str) -> None:
        with pytest.raises(kind) as caught:
            s3.copy().ready(write=write)
        assert hint in caught.value.hint
        for secret in (weed.secret_key, "wrong-secret"):
            assert secret not in f"{caught.value.message}{caught.value.hint}{caught.value!r}"

    bucket, s3.bucket = s3.bucket, "no-such-bucket"
    fails(Gone, "bucket")
    s3.bucket = bucket
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    fails(AccessDenied, "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    fails(AccessDenied, "AWS_ACCESS_KEY_ID")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    fails(AccessDenied, "aws configure")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    fails(AccessDenied, "AWS_PROFILE")


def test_an_endpoint_that_is_away_is_told_within_seconds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setattr("steelyard.copies.s3.READY_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    kind = S3Kind(f"http://user:pass@127.0.0.1:{port}", "b" * 5, "p", tmp_path, None)
    with pytest.raises(Unreachable) as caught:
        kind.copy().ready(write=False)
    assert "pass" not in repr(kind.copy()) + kind.copy().failure_domain() + caught.value.message


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchBucket", 404, Gone),
        ("AccessDenied", 403, AccessDenied),
        ("", 403, AccessDenied),
        ("RequestTimeTooSkewed", 403, AccessDenied),
        ("ExpiredToken", 400, AccessDenied),
        ("PermanentRedirect", 301, OtherSide),
        ("AuthorizationHeaderMalformed", 400, OtherSide),
        ("QuotaExceeded", 403, Refused),
        ("SlowDown", 503, Unreachable),
        ("InternalError", 500, Unreachable),
        ("RequestTimeout", 400, Unreachable),
        ("", 429, Unreachable),
        ("MalformedXML", 400, BadAnswer),
        ("NoSuchKey", 404, Gone),
    ],
)
def test_each_answer_is_one_of_our_errors(code: str, status: int, kind: type[SteelyardError], tmp_path: Any) -> None:
    bucket = S3Kind("http://127.0.0.1:9", "weights", "p", tmp_path, None).copy().bucket
    response = {"Error": {"Code": code, "Message": "as it says"}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}}}
    with pytest.raises(kind) as caught, bucket.errors():
        raise theirs.ClientError(response, "PutObject")  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    if kind in {Refused, AccessDenied}:
        assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "status", "headers", "says", "hint"),
    [
        ("InvalidAccessKeyId", 403, {}, "does not know this access key", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, {}, "secret key", "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", 400, {}, "have expired", "aws sso login"),
        ("RequestTimeTooSkewed", 403, {}, "clock", "timedatectl"),
        ("NoSuchBucket", 404, {}, "bucket weights is not there", "make the bucket"),
        ("PermanentRedirect", 301, {"x-amz-bucket-region": "eu-north-1"}, "another region, eu-north-1", 'region = "eu-north-1"'),
        ("AuthorizationHeaderMalformed", 400, {}, "another region", "set region"),
        ("AccessDenied", 403, {}, "forbids this", "docs/s3.md"),
        ("KMS.DisabledException", 400, {}, "encryption key", "sse_kms_key_id"),
        ("InvalidStorageClass", 400, {}, "no such storage class", "storage_class"),
        ("InvalidRequest", 400, {}, "no object lock", "object_lock_days"),
    ],
)
def test_each_refusal_is_a_sentence_with_what_to_do(
    code: str, status: int, headers: dict[str, str], says: str, hint: str, tmp_path: Any
) -> None:
    bucket = S3Kind("http://127.0.0.1:9", "weights", "p", tmp_path, None).copy().bucket
    message = "Bucket is missing Object Lock Configuration" if code == "InvalidRequest" else "as it says"
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    with pytest.raises((AccessDenied, Gone, Refused, OtherSide)) as caught, bucket.errors():
        raise theirs.ClientError(response, "PutObject")  # type: ignore[arg-type]
    assert says in caught.value.message and hint in caught.value.hint and "\n" not in caught.value.message


def test_every_error_of_botocore_is_mapped(tmp_path: Any) -> None:
    bucket = S3Kind("http://127.0.0.1:9", "weights", "p", tmp_path, None).copy().bucket
    kinds = [one for one in vars(theirs).values() if isinstance(one, type) and issubclass(one, theirs.BotoCoreError)]
    assert len(kinds) > 50
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "as it says")
        with pytest.raises((OtherSide, Refused)), bucket.errors():
            raise error


def test_an_expected_answer_is_handed_to_the_caller(tmp_path: Any) -> None:
    bucket = S3Kind("http://127.0.0.1:9", "weights", "p", tmp_path, None).copy().bucket
    response = {"Error": {"Code": "NoSuchKey"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    with pytest.raises(Told), bucket.errors({"missing"}):
        raise theirs.ClientError(response, "GetObject")  # type: ignore[arg-type]


def test_importing_the_s3_copy_imports_no_boto3() -> None:
    code = (
        "import sys, steelyard.copies.s3; sys.exit(any(name.partition('.')[0] in {'boto3', 'botocore', 'awscrt'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- by hand


@s3_server
def test_restore_txt_gives_the_line_that_brings_it_back(s3: S3Kind) -> None:
    s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    s3.copy().seal(MANIFEST)
    text = s3.read(MANIFEST, "RESTORE.txt")
    assert text is not None
    line = f"aws s3 cp --recursive s3://{s3.bucket}/{s3.prefix}/mvdream/{COMMIT}/ /where/you/want/it --endpoint-url {s3.endpoint_url}"
    assert line in text.decode()
    assert s3.read(MANIFEST, "SHA256SUMS") == f"{ENTRY.sha256}  {FILE}\n".encode()


# --- the server itself


@s3_server
def test_two_servers_do_not_know_each_other_and_end_when_told() -> None:
    from pathlib import Path

    with SeaweedServer() as one, SeaweedServer() as two:
        pids = [one.pid, two.pid]
        assert one.port != two.port
        assert one.secret_key != two.secret_key
        assert one.secret_key not in repr(one)
        folder = one.folder
        listening = (
            subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout if Path("/usr/bin/ss").exists() else ""
        )
        ours = [line.split()[3] for line in listening.splitlines() if f"pid={one.pid}," in line]
        assert all(address.startswith("127.0.0.1:") for address in ours)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not folder.exists()
