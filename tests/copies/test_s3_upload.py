"""Uploads to a real S3 server: resumed across runs and machines, safe from other writers, no orphan left."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from contract import MODEL, PART, PIECE, Bytes, Interrupted, S3Kind, entry_of, manifest_of, reader_of

from steelyard.copies.base import Look, Rotten
from steelyard.copies.s3 import S3Replica
from steelyard.copies.s3_client import Bucket
from steelyard.errors import BadRecord, Corrupt, Refused
from steelyard.manifest import FileEntry, Manifest

pytestmark = pytest.mark.s3
FILE = "weights.pt"
DATA = random.Random(2).randbytes(2 * PART + 4321)
ENTRY = entry_of(FILE, DATA)
MANIFEST = manifest_of(ENTRY)


def bring(s3: S3Kind, data: bytes = DATA, **reading: Any) -> Any:
    return s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(data, **reading)))


def interrupted(s3: S3Kind, at: int) -> None:
    with pytest.raises(Interrupted):
        bring(s3, fail_at=at, error=Interrupted())


class Writes(Bytes):
    """A source that lets something happen when its last piece is read."""

    def __init__(self, data: bytes, then: Callable[[], object]) -> None:
        super().__init__(data)
        self.then = then

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if offset + len(buffer) >= len(self.data):
            self.then()
        return super().readinto(offset, buffer)


def forget(s3: S3Kind) -> None:
    """Be another machine."""
    shutil.rmtree(s3.ours / "uploads", ignore_errors=True)
    shutil.rmtree(s3.ours / "objects", ignore_errors=True)


# --- resume


def test_another_machine_goes_on_with_the_parts_that_match_its_own_bytes(s3: S3Kind) -> None:
    interrupted(s3, PART + PIECE)
    forget(s3)
    source = Bytes(DATA)
    brought = s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, source))
    assert brought.action == "resumed"
    assert brought.bytes_written <= len(DATA) - PART
    assert source.bytes_read == len(DATA), "each part is compared with our own bytes"
    assert s3.read(MANIFEST, FILE) == DATA
    assert s3.leftovers() == []


def test_the_same_machine_does_not_read_what_it_sent(s3: S3Kind) -> None:
    interrupted(s3, PART + PIECE)
    source = Bytes(DATA)
    s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, source))
    assert source.bytes_read <= len(DATA) - PART


@pytest.mark.parametrize("machine", ["the same", "another"])
def test_a_listed_part_with_other_bytes_is_sent_again(s3: S3Kind, machine: str) -> None:
    interrupted(s3, PART + PIECE)
    ((key, upload),) = s3.open_uploads()
    s3.client.upload_part(Bucket=s3.bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(PART))
    if machine == "another":
        forget(s3)
    assert bring(s3).action == "resumed"
    assert s3.read(MANIFEST, FILE) == DATA


def test_an_upload_with_another_part_size_is_of_no_use_and_aborted(s3: S3Kind) -> None:
    interrupted(s3, PART)
    s3.extra = {"part_size": 2 * PART}
    assert bring(s3).action == "copied"
    assert s3.leftovers() == []
    assert s3.read(MANIFEST, FILE) == DATA


def test_an_upload_that_someone_aborts_meanwhile_is_begun_anew(s3: S3Kind) -> None:
    def abort() -> None:
        for key, upload in s3.open_uploads():
            s3.client.abort_multipart_upload(Bucket=s3.bucket, Key=key, UploadId=upload)

    once = iter([abort])
    source = Writes(DATA, lambda: next(once, lambda: None)())
    assert s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, source)).action in {"copied", "resumed"}
    assert s3.read(MANIFEST, FILE) == DATA
    assert s3.leftovers() == []


def test_killed_before_the_id_of_an_upload_was_noted_leaves_no_orphan(s3: S3Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("steelyard.copies.s3_journal.UploadJournal._append", _interrupt)
        bring(s3)
    assert len(s3.open_uploads()) == 1
    bring(s3)
    assert s3.leftovers() == []


def _interrupt(*_: object) -> None:
    raise Interrupted


def killed_at_call(s3: S3Kind, number: int, *, after: bool) -> bool:
    """Bring in a forked child that SIGKILLs itself before or *after* its call *number*; False when it ended by itself before."""
    child = os.fork()
    if child == 0:
        try:
            _die_at_call(number, after)
            # Connections are not shared with the parent: the child makes its own.
            bucket_copy = s3.copy()
            bucket_copy.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
        except BaseException:  # noqa: BLE001 - whatever it is, the child must not go on as a second pytest
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _die_at_call(number: int, after: bool) -> None:
    calls = iter(range(1, 10_000))
    call = Bucket.call

    def counted(self: Bucket, operation: str, **parameters: Any) -> dict[str, Any]:
        last = next(calls) == number
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return call(self, operation, **parameters)
        finally:
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

    Bucket.call = counted  # type: ignore[method-assign]
    Bucket._connect = Bucket._connect.__wrapped__  # type: ignore[method-assign,attr-defined]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_sigkill_at_every_request_costs_at_most_the_parts_in_flight_and_leaves_no_orphan(s3: S3Kind, after: bool) -> None:
    s3.copy().abilities()
    kills = 0
    for number in range(1, 40):
        s3.prefix = f"{s3.prefix.partition('-')[0]}-{number}{after}"
        if not killed_at_call(s3, number, after=after):
            break
        kills += 1
        held = sum(part["Size"] for key, upload in s3.open_uploads() for part in parts_of(s3, key, upload))
        brought = bring(s3)
        assert brought.bytes_written <= len(DATA) - held, f"killed at request {number}"
        assert s3.read(MANIFEST, FILE) == DATA
        assert s3.leftovers() == [], f"killed at request {number}"
    assert kills >= 10


def parts_of(s3: S3Kind, key: str, upload: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = s3.client.list_parts(Bucket=s3.bucket, Key=key, UploadId=upload).get("Parts", [])
    return found


# --- orphans and other people's uploads


def test_uploads_of_others_are_left_alone_even_under_our_key(s3: S3Kind) -> None:
    theirs = []
    for key in (s3.key(MANIFEST, FILE), f"{s3.prefix}/else.bin"):
        upload = s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)["UploadId"]
        s3.client.upload_part(Bucket=s3.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"theirs")
        theirs.append((key, upload))
    interrupted(s3, PART)
    assert bring(s3).action == "resumed"
    s3.copy().seal(MANIFEST)
    assert s3.copy().abort_orphans(0) == 0
    assert sorted(s3.open_uploads()) == sorted(theirs)
    assert s3.read(MANIFEST, FILE) == DATA


def test_old_uploads_of_ours_are_aborted_and_counted_and_young_ones_kept(s3: S3Kind) -> None:
    interrupted(s3, PART)
    assert s3.copy().abort_orphans(3600) == 0
    assert len(s3.open_uploads()) == 1
    assert s3.copy().abort_orphans(0) == 1
    assert s3.leftovers() == []


def test_another_machine_can_abort_our_orphans(s3: S3Kind) -> None:
    interrupted(s3, PART)
    forget(s3)
    assert s3.copy().abort_orphans(0) == 1
    assert s3.leftovers() == []


def test_a_damaged_upload_record_in_the_bucket_is_not_believed(s3: S3Kind) -> None:
    victim = f"{s3.prefix}/victim"
    upload = s3.client.create_multipart_upload(Bucket=s3.bucket, Key=victim)["UploadId"]
    body = b'{"key": "%s", "upload_id": "%s", "begun_at": "2020-01-01T00:00:00+00:00"}' % (victim.encode(), upload.encode())
    s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/.steelyard/uploads/x-y.json", Body=body)
    assert s3.copy().abort_orphans(0) == 0
    assert s3.open_uploads() == [(victim, upload)]


# --- other writers


@pytest.mark.parametrize("data", [DATA, DATA[: 3 * PIECE]], ids=["in parts", "whole"])
def test_what_another_program_wrote_meanwhile_is_not_overwritten(s3: S3Kind, data: bytes) -> None:
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry)
    source = Writes(data, lambda: s3.write(manifest, FILE, b"theirs"))
    with pytest.raises(Refused) as caught:
        s3.copy().bring(manifest, entry, reader_of(entry, source))
    assert "nothing was overwritten" in caught.value.message
    assert s3.read(manifest, FILE) == b"theirs"


@pytest.mark.parametrize("data", [DATA, DATA[: 3 * PIECE]], ids=["in parts", "whole"])
def test_an_object_that_changes_while_it_is_being_replaced_stays(s3: S3Kind, data: bytes) -> None:
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry)
    s3.write(manifest, FILE, b"old")
    source = Writes(data, lambda: s3.write(manifest, FILE, b"theirs"))
    with pytest.raises(Refused):
        s3.copy().bring(manifest, entry, reader_of(entry, source))
    assert s3.read(manifest, FILE) == b"theirs"


def test_two_machines_that_bring_the_same_file_both_succeed(s3: S3Kind, tmp_path: Any) -> None:
    other = S3Kind(s3.endpoint_url, s3.bucket, s3.prefix, tmp_path / "other", s3.client)
    once = iter([lambda: bring(other)])
    source = Writes(DATA, lambda: next(once, lambda: None)())
    s3.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, source))
    assert s3.read(MANIFEST, FILE) == DATA
    assert s3.leftovers() == other.leftovers() == []


def test_what_is_replaced_is_kept_in_the_bucket(s3: S3Kind) -> None:
    s3.write(MANIFEST, FILE, b"evidence")
    bring(s3)
    (kept,) = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{s3.prefix}/.steelyard/quarantine/")["Contents"]
    assert s3.client.get_object(Bucket=s3.bucket, Key=kept["Key"])["Body"].read() == b"evidence"


# --- what is sent


def test_a_source_that_rots_while_it_is_sent_publishes_nothing_and_stays_resumable(s3: S3Kind) -> None:
    rotten = bytearray(DATA)
    rotten[2 * PART + 5] ^= 1
    with pytest.raises(Rotten):
        bring(s3, bytes(rotten))
    assert s3.read(MANIFEST, FILE) is None
    assert len(s3.open_uploads()) == 1
    assert bring(s3).action == "resumed"
    assert s3.leftovers() == []


def test_parts_are_whole_pieces_of_at_least_5_mib_and_never_more_than_10_000() -> None:
    from dataclasses import replace

    from steelyard.copies.s3_parts import part_size
    from steelyard.copies.s3_parts import parts_of as plan

    big = replace(ENTRY, size_bytes=10_001 * 9 * (1 << 20), piece_bytes=9 << 20, pieces=("",) * 10_001)
    for entry, wanted in ((ENTRY, 1), (ENTRY, 16 << 20), (big, 1), (big, 20 << 20)):
        size = part_size(entry, wanted)
        assert size % entry.piece_bytes == 0
        assert size >= max(wanted, 5 << 20)
        parts = plan(entry, size)
        assert len(parts) <= 10_000
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert (parts[0].start, parts[-1].end, parts[-1].last) == (0, entry.size_bytes, len(entry.pieces))


def test_memory_is_bounded_by_the_parts_in_flight(s3: S3Kind) -> None:
    import tracemalloc

    replica = s3.copy()
    replica.abilities()
    tracemalloc.start()
    try:
        replica.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * 2 * PART


def test_a_record_that_contradicts_itself_is_not_carried(s3: S3Kind) -> None:
    from dataclasses import replace

    small = DATA[: 3 * PIECE]
    wrong_crc = replace(entry_of(FILE, small), crc64nvme="0" * 16)
    with pytest.raises(BadRecord):
        s3.copy().bring(manifest_of(wrong_crc), wrong_crc, reader_of(wrong_crc, Bytes(small)))
    wrong_sha = replace(entry_of(FILE, small), sha256="0" * 64)
    reader = reader_of(wrong_sha, Bytes(small))
    reader.pieces_are_trusted = False
    with pytest.raises(Corrupt):
        s3.copy().bring(manifest_of(wrong_sha), wrong_sha, reader)
    assert s3.read(MANIFEST, FILE) is None


# --- what the store has already


def snapshot(s3: S3Kind, data: bytes, commit: str) -> tuple[S3Replica, Manifest, FileEntry, Any]:
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry, commit=commit)
    replica = s3.copy()
    brought = replica.bring(manifest, entry, reader_of(entry, Bytes(data)))
    replica.seal(manifest)
    return replica, manifest, entry, brought


@pytest.mark.parametrize("by_parts", [False, True])
def test_an_unchanged_file_of_a_new_snapshot_is_copied_by_the_store(s3: S3Kind, monkeypatch: pytest.MonkeyPatch, by_parts: bool) -> None:
    if by_parts:
        monkeypatch.setattr("steelyard.copies.s3.COPY_WHOLE_BYTES", PART)
    snapshot(s3, DATA, "a" * 40)
    replica, manifest, entry, brought = snapshot(s3, DATA, "b" * 40)
    assert (brought.action, brought.bytes_written) == ("copied", 0)
    assert replica.judge(manifest, entry, Look("deep")).ok
    assert replica.judge(manifest, entry, Look()).proof == "crc64nvme by HEAD"
    assert s3.leftovers() == []


def test_only_the_changed_parts_of_a_new_revision_are_sent(s3: S3Kind) -> None:
    snapshot(s3, DATA, "a" * 40)
    changed = bytearray(DATA)
    changed[PART + 7] ^= 1
    replica, manifest, entry, brought = snapshot(s3, bytes(changed), "b" * 40)
    assert brought.bytes_written == PART
    assert replica.judge(manifest, entry, Look("deep")).ok


def test_a_part_that_moved_is_found_where_it_is_now(s3: S3Kind) -> None:
    snapshot(s3, DATA, "a" * 40)
    moved = random.Random(3).randbytes(PART) + DATA[:PART]
    replica, manifest, entry, brought = snapshot(s3, moved, "b" * 40)
    assert brought.bytes_written == PART
    assert replica.judge(manifest, entry, Look("deep")).ok


def test_a_rotten_older_object_is_not_copied_from(s3: S3Kind) -> None:
    _, manifest, entry, _ = snapshot(s3, DATA, "a" * 40)
    rotten = bytearray(DATA)
    rotten[5] ^= 1
    s3.write(manifest, FILE, bytes(rotten))
    replica, manifest, entry, brought = snapshot(s3, DATA, "b" * 40)
    assert brought.bytes_written == len(DATA)
    assert replica.judge(manifest, entry, Look("deep")).ok


def test_the_record_of_an_upload_names_it_and_nothing_else(s3: S3Kind) -> None:
    interrupted(s3, PART)
    (record,) = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{s3.prefix}/.steelyard/uploads/")["Contents"]
    body = s3.client.get_object(Bucket=s3.bucket, Key=record["Key"])["Body"].read().decode()
    assert f"{MODEL}/{'a' * 40}/{FILE}" in body
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in body
    assert str(datetime.now(UTC).year) in body
