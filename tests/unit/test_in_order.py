"""Blocks read several at once, in the order of the file: the verdict on every piece is that of a plain reader."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass, field

import pytest

from steelyard import in_order
from steelyard.direct import ALIGNED_BYTES, HUGE_BYTES, aligned_buffer, aligned_buffers
from steelyard.errors import Stopped, Unreadable
from steelyard.in_order import check_in_order
from steelyard.pieces import check_pieces, piece_ranges

BLOCK = 4096


@dataclass
class Medium:
    """Bytes whose blocks come late, or not at all."""

    data: bytes
    broken: tuple[int, ...] = ()
    late_s: float = 0.0
    asked: list[int] = field(default_factory=list)
    name: str = "a medium"

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        self.asked.append(offset)
        if self.late_s:
            time.sleep(self.late_s * random.random())
        if any(offset <= at < offset + len(buffer) for at in self.broken):
            raise Unreadable(path=self.name, why="no such sector", ranges=((offset, offset + len(buffer)),))
        part = self.data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order, "DIRECT_READ_BYTES", BLOCK)


def pieces_of(data: bytes, piece_bytes: int) -> list[str]:
    from blake3 import blake3

    return [blake3(data[lo:hi]).hexdigest() for lo, hi in piece_ranges(len(data), piece_bytes)]


@pytest.mark.parametrize("seed", range(30))
def test_the_verdict_is_that_of_a_plain_reader_whatever_is_damaged_and_however_late_it_comes(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 40 * BLOCK, 57 * BLOCK + 11, rng.randrange(1, 90 * BLOCK)])
    piece_bytes = rng.choice([BLOCK, 3 * BLOCK, 2 * BLOCK + 100, 64 * BLOCK])
    right = rng.randbytes(size)
    pieces = pieces_of(right, piece_bytes)
    there = bytearray(right)
    for _ in range(rng.randrange(4) if size else 0):
        there[rng.randrange(size)] ^= 1
    broken = tuple(rng.randrange(size) for _ in range(rng.randrange(3))) if size else ()
    cut = bytes(there[: rng.randrange(size + 1)]) if rng.random() < 0.3 else bytes(there)
    stop = threading.Event()
    plain = check_pieces(Medium(cut, broken), size, piece_bytes, pieces, stop=stop, threads=1)
    seen: list[int] = []
    found = check_in_order(Medium(cut, broken, late_s=0.001), size, piece_bytes, pieces, stop=stop, on_bytes=seen.append)
    assert (found.bad, found.unreadable) == (plain.bad, plain.unreadable)
    assert found.why_unreadable == plain.why_unreadable
    assert sum(seen) == size


def test_the_medium_is_asked_for_what_comes_next() -> None:
    data = random.Random(1).randbytes(200 * BLOCK)
    medium = Medium(data)
    assert check_in_order(medium, len(data), 8 * BLOCK, pieces_of(data, 8 * BLOCK), stop=threading.Event()).whole
    assert sorted(medium.asked) == list(range(0, len(data), BLOCK))
    assert max(abs(at - index * BLOCK) for index, at in enumerate(medium.asked)) <= in_order.READERS * BLOCK


def test_a_stop_is_heeded_and_an_unexpected_error_ends_every_reader() -> None:
    data = bytes(400 * BLOCK)
    pieces, stop = pieces_of(data, 8 * BLOCK), threading.Event()
    with pytest.raises(Stopped):
        check_in_order(Medium(data, late_s=0.01), len(data), 8 * BLOCK, pieces, stop=stop, on_bytes=lambda _: stop.set())

    class Gone(Medium):
        def readinto(self, offset: int, buffer: memoryview) -> int:
            if offset == 9 * BLOCK:
                raise RuntimeError("gone")
            return super().readinto(offset, buffer)

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="gone"):
        check_in_order(Gone(data, late_s=0.001), len(data), 8 * BLOCK, pieces, stop=threading.Event())
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 1 << 20, HUGE_BYTES - 1, HUGE_BYTES, 3 * HUGE_BYTES + 5])
def test_buffers_for_direct_reads_begin_on_a_page_are_apart_and_empty(size: int) -> None:
    import ctypes

    def address(view: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))

    buffers = aligned_buffers(3, size)
    spans = sorted((address(one), address(one) + len(one)) for one in buffers)
    assert [len(one) for one in buffers] == [max(1, size)] * 3
    assert all(start % ALIGNED_BYTES == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert not any(bytes(one[:4096]).strip(b"\0") for one in buffers)
    if size >= HUGE_BYTES:
        assert address(aligned_buffer(size)) % HUGE_BYTES == 0
