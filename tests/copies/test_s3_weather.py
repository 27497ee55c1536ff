"""A real S3 server behind bad weather: right bytes or a clear error, every time."""

from __future__ import annotations

import random
import threading
import time

import pytest
from contract import PART, PIECE, Bytes, S3Kind, build, entry_of, manifest_of, reader_of

from steelyard.copies.base import Look, ProvenReader
from steelyard.errors import BadAnswer, Stopped, Unreachable
from steelyard.source import read_at
from steelyard.standins.s3_faults import Fault, answer, cut_down, cut_up, flip_down, flip_up, lose, reset, stall
from steelyard.standins.s3_proxy import S3Proxy
from steelyard.watch import Watch, watched_by

pytestmark = pytest.mark.s3
FILE = "weights.pt"
DATA = random.Random(4).randbytes(PART + 70_000)
SMALL = DATA[: 3 * PIECE + 5]
ENTRY, SMALL_ENTRY = entry_of(FILE, DATA), entry_of(FILE, SMALL)
MANIFEST, SMALL_MANIFEST = manifest_of(ENTRY), manifest_of(SMALL_ENTRY)

UP = [reset(), answer(503), answer(500), answer(429), lose(), flip_up(PART // 2), cut_up(PART // 3)]
DOWN = [reset(), answer(503), answer(500), lose(), flip_down(1000), cut_down(30_000), cut_down(0)]


def name(fault: Fault) -> str:
    return f"{fault.kind} {fault.status if fault.kind == 'answer' else fault.at or ''}".strip()


@pytest.mark.parametrize("fault", UP, ids=name)
def test_a_part_that_meets_bad_weather_is_sent_again_alone(far: S3Kind, proxy: S3Proxy, fault: Fault) -> None:
    proxy.fault(fault, method="PUT", query="partNumber=1")
    brought = far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert far.read(MANIFEST, FILE) == DATA
    assert brought.bytes_written == len(DATA)
    assert [proxy.count("PUT", query=f"partNumber={number}") for number in (1, 2)] == [2, 1]
    assert far.leftovers() == []


@pytest.mark.parametrize("fault", [*UP[:5], flip_up(1000), cut_up(1000)], ids=name)
def test_a_small_file_that_meets_bad_weather_is_sent_again(far: S3Kind, proxy: S3Proxy, fault: Fault) -> None:
    proxy.fault(fault, method="PUT", key=FILE)
    far.copy().bring(SMALL_MANIFEST, SMALL_ENTRY, reader_of(SMALL_ENTRY, Bytes(SMALL)))
    assert far.read(SMALL_MANIFEST, FILE) == SMALL


@pytest.mark.parametrize("fault", [reset(), answer(503), lose(), cut_down(0)], ids=name)
@pytest.mark.parametrize("which", ["uploads", "uploadId=", "steelyard/uploads"])
def test_bad_weather_at_the_beginning_and_the_end_of_an_upload_leaves_no_orphan(
    far: S3Kind, proxy: S3Proxy, fault: Fault, which: str
) -> None:
    method = "PUT" if "steelyard" in which else "POST"
    query, key = ("", which) if "steelyard" in which else (which, "")
    proxy.fault(fault, method=method, query=query, key=key, times=2)
    far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert any(seen.fault for seen in proxy.requests)
    assert far.read(MANIFEST, FILE) == DATA
    assert far.leftovers() == []


@pytest.mark.parametrize("fault", DOWN, ids=name)
def test_a_piece_that_meets_bad_weather_is_fetched_again_alone(far: S3Kind, proxy: S3Proxy, fault: Fault) -> None:
    far.write(SMALL_MANIFEST, FILE, SMALL)
    proxy.fault(fault, method="GET", key=FILE, skip=1)
    reader = ProvenReader(SMALL_ENTRY, {"s3": far.copy().open(SMALL_MANIFEST, SMALL_ENTRY)})
    whole = b"".join(bytes(reader.read_piece(index, memoryview(bytearray(PIECE)))) for index in range(len(SMALL_ENTRY.pieces)))
    assert whole == SMALL
    assert proxy.count("GET", key=FILE) == len(SMALL_ENTRY.pieces) + 1
    assert proxy.bytes_down <= len(SMALL) + PIECE


@pytest.mark.parametrize("fault", DOWN, ids=name)
def test_a_deep_look_through_bad_weather_finds_no_damage_that_is_not_there(far: S3Kind, proxy: S3Proxy, fault: Fault) -> None:
    far.write(SMALL_MANIFEST, FILE, SMALL)
    proxy.fault(fault, method="GET", key=FILE, skip=1)
    assert far.copy().judge(SMALL_MANIFEST, SMALL_ENTRY, Look("deep")).ok


def test_a_range_that_breaks_off_goes_on_where_it_was(far: S3Kind, proxy: S3Proxy) -> None:
    far.write(MANIFEST, FILE, DATA)
    proxy.fault(cut_down(PART // 2), method="GET")
    assert read_at(far.copy().open(MANIFEST, ENTRY), 0, len(DATA)) == DATA
    assert proxy.bytes_down <= len(DATA) + PART // 8


@pytest.mark.parametrize("fault", [answer(503), reset()], ids=name)
def test_some_seconds_of_storm_end_no_run(far: S3Kind, proxy: S3Proxy, fault: Fault) -> None:
    """The 60 s of the promise scaled down: patience is 150 s, and its steps are at most 10 s."""
    replica = far.copy()
    with proxy.weather(fault, 0.8):
        replica.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert far.read(MANIFEST, FILE) == DATA
    with proxy.weather(fault, 0.8):
        assert read_at(replica.open(MANIFEST, ENTRY), 0, 100) == DATA[:100]


def test_a_storm_that_outlasts_patience_is_a_clear_error_and_the_next_run_goes_on(far: S3Kind, proxy: S3Proxy) -> None:
    impatient = build(far.spec() | {"patience_s": 0.5})
    proxy.fault(answer(503), method="PUT", query="partNumber=2", times=1000)
    with pytest.raises(Unreachable) as caught:
        impatient.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert "503" in caught.value.message
    assert far.read(MANIFEST, FILE) is None
    proxy.clear()
    assert far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA))).bytes_written <= 70_000 + PART
    assert far.leftovers() == []


def test_bytes_that_arrive_damaged_time_and_again_are_a_clear_error(far: S3Kind, proxy: S3Proxy) -> None:
    proxy.fault(flip_up(1000), method="PUT", query="partNumber=2", times=1000)
    with pytest.raises(BadAnswer) as caught:
        far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert "damaged" in caught.value.message
    assert far.read(MANIFEST, FILE) is None


def test_silence_is_ended_by_us(weed, s3: S3Kind, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("steelyard.copies.s3_client.SILENCE_S", 0.5)
    far: S3Kind = request.getfixturevalue("far")
    proxy: S3Proxy = request.getfixturevalue("proxy")
    far.write(SMALL_MANIFEST, FILE, SMALL)
    proxy.fault(stall(20), method="GET", key=FILE)
    proxy.fault(stall(20, at=PIECE // 2), method="GET", key=FILE, skip=2)
    began = time.monotonic()
    assert far.copy().judge(SMALL_MANIFEST, SMALL_ENTRY, Look("deep")).ok
    assert time.monotonic() - began < 10


def test_a_stop_is_seen_within_a_request(far: S3Kind, proxy: S3Proxy) -> None:
    watch = Watch()
    proxy.fault(answer(503), times=1000)
    threading.Timer(0.5, watch.stop.set).start()
    began = time.monotonic()
    with watched_by(watch), pytest.raises(Stopped):
        far.copy().bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    assert time.monotonic() - began < 5


# --- what a default look can't see


def rot_below_the_checksum(proxy: S3Proxy, at: int) -> None:
    """Every answer with the byte *at* of the object has it wrong, as if the medium behind the store had rotted."""
    start = at // PIECE * PIECE
    proxy.fault(flip_down(at - start), method="GET", key=FILE, header=f"range: bytes={start}-", times=1000)


def test_rot_below_the_stores_checksum_is_seen_by_a_deep_look_only_and_the_proof_says_so(far: S3Kind, proxy: S3Proxy) -> None:
    replica = far.copy()
    replica.bring(MANIFEST, ENTRY, reader_of(ENTRY, Bytes(DATA)))
    rot_below_the_checksum(proxy, PIECE + 7)
    default = replica.judge(MANIFEST, ENTRY, Look())
    assert (default.verdict, default.proof, default.bytes_read) == ("ok", "crc64nvme by HEAD", 0)
    deep = replica.judge(MANIFEST, ENTRY, Look("deep"))
    assert deep.verdict == "corrupt"
    assert deep.bad_ranges == ((PIECE, 2 * PIECE),)
    proxy.clear()
    assert replica.mend(MANIFEST, ENTRY, deep, reader_of(ENTRY, Bytes(DATA))) <= PART
    assert replica.judge(MANIFEST, ENTRY, Look("deep")).ok


def test_a_range_that_alone_can_not_be_had_is_unreadable(far: S3Kind, proxy: S3Proxy) -> None:
    far.write(SMALL_MANIFEST, FILE, SMALL)
    proxy.fault(answer(500), method="GET", key=FILE, header=f"range: bytes={PIECE}-", times=1000)
    finding = build(far.spec() | {"patience_s": 0.5}).judge(SMALL_MANIFEST, SMALL_ENTRY, Look("deep"))
    assert (finding.verdict, finding.bad_ranges) == ("unreadable", ((PIECE, 2 * PIECE),))


def test_a_store_that_is_away_is_an_error_and_no_verdict(far: S3Kind, proxy: S3Proxy) -> None:
    far.write(SMALL_MANIFEST, FILE, SMALL)
    proxy.fault(answer(500), times=1000)
    for depth in ("quick", "default", "deep"):
        with pytest.raises(Unreachable):
            build(far.spec() | {"patience_s": 0.3}).judge(SMALL_MANIFEST, SMALL_ENTRY, Look(depth))  # type: ignore[arg-type]


def test_an_object_that_changes_while_it_is_read_is_no_mix(far: S3Kind) -> None:
    far.write(MANIFEST, FILE, DATA)
    source = far.copy().open(MANIFEST, ENTRY)
    read_at(source, 0, PIECE)
    far.write(MANIFEST, FILE, bytes(len(DATA)))
    with pytest.raises(BadAnswer):
        read_at(source, PIECE, PIECE)
