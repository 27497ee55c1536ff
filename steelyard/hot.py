"""Blocks that have just been written and are still in memory, for who digests the file in order: nothing is read back that is at hand."""

from __future__ import annotations

import threading
import time

from steelyard.direct import HUGE_BYTES, aligned_buffers
from steelyard.staging import BLOCK_BYTES

WAIT_S = 2.0
"""The longest that who brings a block waits for who digests: a digest that stands still (a stopped run, a full queue) must not end a download."""


class HotBlocks:
    """At most *count* blocks near the place that is being digested, for one digesting thread and any number that bring.

    Who brings faster than is digested is held back a moment in swap(), but only while there is something to digest: a slow connection
    keeps nobody from going on.
    """

    def __init__(self, count: int = 40) -> None:
        self._moved = threading.Condition()
        self._unmade = count
        self._window = count * BLOCK_BYTES
        self._spare: list[memoryview] = []
        self._new: list[memoryview] = []
        self._held: dict[int, tuple[memoryview, memoryview]] = {}
        self._at = 0
        self._digesting = False

    def buffer(self) -> memoryview:
        """A buffer of one block to begin with."""
        with self._moved:
            return self._make()

    def swap(self, start: int, length: int, buffer: memoryview) -> memoryview:
        """Keep the block at *start* where it can be, and return the buffer to go on with: a spare one, or the same. May wait, at most WAIT_S."""
        until = time.monotonic() + WAIT_S
        with self._moved:
            while self._digesting and start >= self._at and not self._has_room(start) and (left := until - time.monotonic()) > 0:
                self._moved.wait(left)
            if start < self._at or start in self._held or not self._has_room(start):
                return buffer
            if not self._spare:
                self._unmade -= 1
                self._spare.append(self._make())
            self._held[start] = (buffer[:length], buffer)
            return self._spare.pop()

    def _make(self) -> memoryview:
        if not self._new:
            self._new = aligned_buffers(HUGE_BYTES // BLOCK_BYTES, BLOCK_BYTES)
        return self._new.pop()

    def _has_room(self, start: int) -> bool:
        return start < self._at + self._window and bool(self._spare or self._unmade)

    def take(self, at: int) -> tuple[memoryview, memoryview] | None:
        """The block that begins at *at*, and its buffer for give_back(); None when it is not at hand. What lies before *at* is let go."""
        with self._moved:
            self._at, self._digesting = at, True
            for start in [start for start in self._held if start < at]:
                self._spare.append(self._held.pop(start)[1])
            self._moved.notify_all()
            return self._held.pop(at, None)

    def give_back(self, buffer: memoryview) -> None:
        with self._moved:
            self._spare.append(buffer)
            self._moved.notify_all()

    def hungry(self) -> None:
        """Nothing is left to digest until more arrives: nobody is to wait."""
        with self._moved:
            self._digesting = False
            self._moved.notify_all()
