"""Every byte is read back once in so many days, a share each time, within what may be read in a day."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from contract import PIECE, Bytes, S3Kind, entry_of, manifest_of, reader_of

from steelyard.copies.s3_rolling import NEVER, Rounds, allow, choose
from steelyard.standins.s3_faults import flip_down
from steelyard.standins.s3_proxy import S3Proxy

DAY = 86400.0
NOON = 1_800_014_400.0 // DAY * DAY + DAY / 2
DATA = [random.Random(20 + number).randbytes(8 * PIECE) for number in range(2)]
ENTRIES = [entry_of(f"part-{number}.bin", data) for number, data in enumerate(DATA)]
MANIFEST = manifest_of(*ENTRIES)


def test_a_month_of_daily_shares_reads_every_byte_once_and_no_day_more_than_its_share() -> None:
    times = {entry.path: [NEVER] * 8 for entry in ENTRIES}
    read: list[int] = []
    for day in range(8):
        now = NOON + day * DAY
        allowance = allow([(entry, times[entry.path]) for entry in ENTRIES], 8, None, now)
        shares = choose([((MANIFEST, entry), times[entry.path]) for entry in ENTRIES], allowance.now_bytes)
        read.append(sum(share.size_bytes for share in shares))
        for share in shares:
            for index in share.pieces:
                assert times[share.entry.path][index] == NEVER, "nothing twice before everything once"
                times[share.entry.path][index] = now
    assert read == [2 * PIECE] * 8
    assert allow([(entry, times[entry.path]) for entry in ENTRIES], 8, None, NOON + 7 * DAY + 60).now_bytes == 0, "today's share was read"


def test_days_that_were_missed_are_made_up_for_and_the_egress_of_a_day_is_never_exceeded() -> None:
    held = [(ENTRIES[0], [NOON] * 8)]
    assert allow(held, 8, None, NOON + 3 * DAY).now_bytes == 3 * PIECE
    assert allow(held, 8, 2 * PIECE, NOON + 3 * DAY).now_bytes == 2 * PIECE
    slow = allow(held, 8, PIECE // 2, NOON + DAY)
    assert (slow.now_bytes, slow.cycle_days) == (PIECE // 2, 16)


def test_records_outlive_the_process_a_torn_line_and_are_of_one_object_only(tmp_path: Path) -> None:
    entry = ENTRIES[0]
    Rounds(tmp_path, "x").note(MANIFEST, entry, "etag-1", [0, 1, 5], at=NOON)
    (path,) = (tmp_path / "rounds").rglob("*.jsonl")
    with path.open("a") as out:
        out.write('{"path": "part-0.bin", "eta')
    assert Rounds(tmp_path, "x").times(MANIFEST, entry, "etag-1") == [NOON, NOON, 0, 0, 0, NOON, 0, 0]
    assert Rounds(tmp_path, "x").times(MANIFEST, entry, "etag-2") == [NEVER] * 8


def test_a_long_record_is_written_anew_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(tmp_path, "x")
    for number in range(40):
        rounds.note(MANIFEST, ENTRIES[0], "e", [number % 8], at=NOON + number)
    before = rounds.times(MANIFEST, ENTRIES[0], "e")
    monkeypatch.setattr("steelyard.copies.s3_rolling.MOST_LINES", 10)
    assert Rounds(tmp_path, "x").times(MANIFEST, ENTRIES[0], "e") == before
    (path,) = (tmp_path / "rounds").rglob("*.jsonl")
    assert len(path.read_text().splitlines()) == 8
    assert Rounds(tmp_path, "x").times(MANIFEST, ENTRIES[0], "e") == before


@pytest.fixture
def stored(far: S3Kind, proxy: S3Proxy) -> S3Kind:
    replica = far.copy()
    for entry, data in zip(ENTRIES, DATA, strict=True):
        replica.bring(MANIFEST, entry, reader_of(entry, Bytes(data)))
    proxy.requests.clear()
    return far


@pytest.mark.s3
def test_a_share_reads_just_its_bytes_and_the_next_process_goes_on_behind_it(stored: S3Kind, proxy: S3Proxy) -> None:
    stored.extra |= {"egress_per_day": 5 * PIECE}
    allowance, done = stored.copy().looker.roll([MANIFEST], None)
    assert allowance.never_bytes == allowance.total_bytes == 16 * PIECE
    assert (
        sum(finding.bytes_read for _, finding in done)
        == 5 * PIECE
        == proxy.bytes_down - sum(one.bytes_down for one in proxy.requests if one.query)
    )
    assert all(finding.ok and "5 of 8 pieces" in finding.proof for _, finding in done)
    assert stored.copy().looker.roll([MANIFEST], None)[1] == [], "that was today's"
    stored.extra |= {"egress_per_day": 16 * PIECE}
    _, done = stored.copy().looker.roll([MANIFEST], None)
    assert {index for share, _ in done for index in share.pieces if share.entry.path == "part-0.bin"} == {5, 6, 7}
    assert stored.copy().looker.due([MANIFEST])[0].never_bytes == 0


@pytest.mark.s3
def test_a_bad_piece_is_named_and_stays_due_and_an_archive_leaves_its_share_to_the_next(stored: S3Kind, proxy: S3Proxy) -> None:
    stored.extra |= {"egress_per_day": 8 * PIECE}
    proxy.archive("part-0.bin")
    proxy.fault(flip_down(10), method="GET", key="part-1.bin", header=f"range: bytes={PIECE}-", times=float("inf"))
    _, done = stored.copy().looker.roll([MANIFEST], None)
    assert [finding.verdict for _, finding in done] == ["ok", "corrupt"]
    assert (done[0][1].bytes_read, done[0][1].proof) == (0, "crc64nvme by HEAD")
    assert done[1][1].bad_ranges == ((PIECE, 2 * PIECE),)
    assert stored.copy().looker.due([MANIFEST])[0].never_bytes == 16 * PIECE, "what is not right was not proven"
