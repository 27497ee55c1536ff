"""Blocks that are still in memory for who digests: who brings is held back while there is something to digest, and never when there is not."""

from __future__ import annotations

import threading
import time

import pytest

from steelyard.hot import HotBlocks
from steelyard.staging import BLOCK_BYTES


def put(hot: HotBlocks, number: int) -> memoryview:
    buffer = hot.buffer()
    buffer[:1] = bytes([number])
    return hot.swap(number * BLOCK_BYTES, BLOCK_BYTES, buffer)


def test_a_block_is_at_hand_once() -> None:
    hot = HotBlocks(2)
    put(hot, 0)
    taken = hot.take(0)
    assert taken is not None and taken[0][0] == 0 and len(taken[0]) == BLOCK_BYTES
    assert hot.take(0) is None


def test_beyond_the_window_nobody_waits_before_digesting_has_begun() -> None:
    hot = HotBlocks(2)
    mine = hot.buffer()
    began = time.monotonic()
    assert hot.swap(5 * BLOCK_BYTES, BLOCK_BYTES, mine) is mine
    assert time.monotonic() - began < 1


def test_who_brings_waits_until_the_digests_have_come_near() -> None:
    hot = HotBlocks(2)
    put(hot, 0)
    first = hot.take(0)
    assert first is not None
    brought = threading.Event()
    bringer = threading.Thread(target=lambda: (put(hot, 2), brought.set()))
    bringer.start()
    assert not brought.wait(0.2)
    hot.give_back(first[1])
    assert hot.take(BLOCK_BYTES) is None
    assert brought.wait(10)
    bringer.join()
    kept = hot.take(2 * BLOCK_BYTES)
    assert kept is not None and kept[0][0] == 2


def test_who_brings_goes_on_when_nothing_is_left_to_digest() -> None:
    hot = HotBlocks(2)
    hot.take(0)
    brought = threading.Event()
    bringer = threading.Thread(target=lambda: (put(hot, 9), brought.set()))
    bringer.start()
    assert not brought.wait(0.2)
    hot.hungry()
    assert brought.wait(10)
    bringer.join()
    assert hot.take(9 * BLOCK_BYTES) is None


def test_a_digest_that_stands_still_does_not_end_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.hot.WAIT_S", 0.1)
    hot = HotBlocks(2)
    hot.take(0)
    mine = hot.buffer()
    assert hot.swap(9 * BLOCK_BYTES, BLOCK_BYTES, mine) is mine


def test_the_first_block_gets_a_buffer_though_later_ones_hold_all() -> None:
    hot = HotBlocks(2)
    put(hot, 0)
    put(hot, 1)
    assert hot.take(0) is not None
    # Both buffers are out: block 2 is in the window, and finds none.
    hot.hungry()
    mine = hot.buffer()
    assert hot.swap(2 * BLOCK_BYTES, BLOCK_BYTES, mine) is mine
