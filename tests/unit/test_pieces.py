"""Piece maths, and the single pass."""

import hashlib
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Stopped
from steelyard.pieces import MAX_PIECES, MIB, Arrival, check_pieces, digest_source, merge_ranges, piece_ranges, piece_size
from steelyard.source import LocalFile

RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)).map(lambda pair: (min(pair), max(pair))), max_size=20)


@given(st.integers(0, 1 << 50))
def test_a_file_never_has_more_pieces_than_s3_takes_parts(size: int) -> None:
    step = piece_size(size)
    assert step % (8 * MIB) == 0
    assert -(-size // step) <= MAX_PIECES


@given(st.integers(0, 10_000), st.integers(1, 977))
def test_pieces_tile_the_file_exactly(size: int, step: int) -> None:
    ranges = piece_ranges(size, step)
    assert sum(end - start for start, end in ranges) == size
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    assert not ranges or (ranges[0][0] == 0 and ranges[-1][1] == size)


@given(RANGES)
def test_merged_ranges_cover_the_same_bytes_and_do_not_touch(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    assert {at for lo, hi in ranges for at in range(lo, hi)} == {at for lo, hi in merged for at in range(lo, hi)}
    assert all(one[1] < other[0] for one, other in pairwise(merged))


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=5000), st.lists(st.integers(1, 700), max_size=30), st.integers(1, 900))
def test_the_digests_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int], step: int) -> None:
    arrival = Arrival(len(data), git=True, piece_bytes=step)
    at = 0
    for cut in cuts:
        arrival.feed(data[at : at + cut])
        at += cut
    arrival.feed(data[at:])
    found = arrival.finish()
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.git_sha1 == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    assert found.pieces == tuple(blake3(data[lo:hi]).hexdigest() for lo, hi in piece_ranges(len(data), step))


def test_crc64_is_the_one_that_s3_returns() -> None:
    arrival = Arrival(9)
    arrival.feed(b"123456789")
    assert arrival.finish().crc64nvme == "ae8b14860a799888"  # the check value of CRC-64/NVME


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 7])
def test_one_pass_over_a_file_agrees_with_hashlib(size: int, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    with LocalFile(path) as source:
        found = digest_source(source, stop=threading.Event())
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert check_pieces(source, size, found.piece_bytes, found.pieces, stop=threading.Event()).whole


def test_a_stop_request_ends_a_pass(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 4 * MIB)
    stop = threading.Event()
    stop.set()
    with LocalFile(path) as source:
        with pytest.raises(Stopped):
            digest_source(source, stop=stop)
        with pytest.raises(Stopped):
            check_pieces(source, 4 * MIB, MIB, ["0" * 64] * 4, stop=stop)


def test_an_unreadable_piece_is_a_finding_and_the_rest_is_still_judged() -> None:
    from steelyard.errors import Unreadable

    class Failing:
        name, size_bytes = "failing", 3 * MIB

        def readinto(self, offset: int, buffer: memoryview) -> int:
            if offset < 2 * MIB <= offset + len(buffer) or MIB <= offset < 2 * MIB:
                raise Unreadable(path=self.name, why="Input/output error", ranges=((offset, offset + len(buffer)),))
            buffer[:] = bytes(len(buffer))
            return len(buffer)

        def close(self) -> None: ...

    good = blake3(bytes(MIB)).hexdigest()
    found = check_pieces(Failing(), 3 * MIB, MIB, [good, good, "0" * 64], stop=threading.Event())
    assert found.unreadable == ((MIB, 2 * MIB),)
    assert found.bad == ((2 * MIB, 3 * MIB),)
    assert found.why_unreadable == "Input/output error"
