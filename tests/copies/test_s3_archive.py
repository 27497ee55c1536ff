"""Bytes in an archive: asked back once, told when to come again, read by a later run. The archive is played by the proxy; no server of one's own has one."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from contract import PIECE, Bytes, S3Kind, entry_of, manifest_of, reader_of

from steelyard.copies.base import Look, ProvenReader, Rotten
from steelyard.errors import Archived
from steelyard.standins.s3_proxy import S3Proxy

pytestmark = pytest.mark.s3
DATA = random.Random(9).randbytes(3 * PIECE + 5)
ENTRY = entry_of("weights.pt", DATA)
MANIFEST = manifest_of(ENTRY)


@pytest.fixture
def stored(far: S3Kind, proxy: S3Proxy) -> S3Kind:
    far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    proxy.requests.clear()
    return far


def wanted(kind: S3Kind) -> ProvenReader:
    return ProvenReader(ENTRY, {"s3": kind.copy().open(MANIFEST, ENTRY)})


def error_of(reader: ProvenReader) -> Archived:
    with pytest.raises(Rotten) as caught:
        reader.read_piece(0, memoryview(bytearray(PIECE)))
    error = caught.value.errors[0]
    assert isinstance(error, Archived)
    return error


@pytest.mark.parametrize(
    ("storage_class", "tier", "hours"), [("GLACIER", "Standard", 5), ("GLACIER", "Bulk", 12), ("DEEP_ARCHIVE", "Bulk", 48)]
)
def test_what_is_wanted_is_asked_back_once_and_read_when_it_is_there(
    stored: S3Kind, proxy: S3Proxy, storage_class: str, tier: str, hours: int
) -> None:
    stored.extra |= {"archive_tier": tier, "archive_days": 3}
    there = proxy.archive("weights.pt", storage_class)
    error = error_of(wanted(stored))
    assert error.exit_code == 4 and f"lies in {storage_class}" in error.message and "come again after" in error.message
    asked = [one for one in proxy.requests if one.query.startswith("restore")]
    assert b"<Days>3</Days>" in asked[0].body and f"<Tier>{tier}</Tier>".encode() in asked[0].body
    again = error_of(wanted(stored))
    assert (datetime.fromisoformat(error.ready_at) - datetime.now(UTC)).total_seconds() == pytest.approx(hours * 3600, abs=600)
    assert (there.asked, again.message, again.ready_at) == (1, error.message, error.ready_at), "the record says when it was asked"
    there.state = "awake"
    assert wanted(stored).read_piece(1, memoryview(bytearray(PIECE))) == DATA[PIECE : 2 * PIECE]


def test_what_another_machine_asked_back_is_not_asked_again(stored: S3Kind, proxy: S3Proxy) -> None:
    there = proxy.archive("weights.pt")
    there.state = "ongoing"
    assert "on its way" in error_of(wanted(stored)).message
    assert there.asked == 0


def test_opening_looking_and_another_copy_that_has_the_piece_cost_nothing(stored: S3Kind, proxy: S3Proxy) -> None:
    there = proxy.archive("weights.pt")
    reader = ProvenReader(ENTRY, {"s3": stored.copy().open(MANIFEST, ENTRY), "usb": Bytes(DATA)}, together=("s3", "usb"))  # type: ignore[dict-item]
    assert reader.read_piece(0, memoryview(bytearray(PIECE))) == DATA[:PIECE]
    assert set(reader.used_bytes) == {"usb"}
    found = stored.copy().judge(MANIFEST, ENTRY, Look())
    assert (found.verdict, found.proof) == ("ok", "crc64nvme by HEAD")
    assert stored.copy().judge(MANIFEST, ENTRY, Look("deep")).ok, "a scrub wakes nothing"
    assert there.asked == 0


def test_a_deep_look_at_just_this_copy_asks_back_and_says_unverified_until_then(stored: S3Kind, proxy: S3Proxy) -> None:
    there = proxy.archive("weights.pt")
    found = stored.copy().judge(MANIFEST, ENTRY, Look("deep", wake=True))
    assert (found.verdict, found.waits, there.asked) == ("unverified", True, 1)
    assert "come again after" in found.why
    there.state = "awake"
    found = stored.copy().judge(MANIFEST, ENTRY, Look("deep", wake=True))
    assert (found.verdict, found.bytes_read) == ("ok", len(DATA))
