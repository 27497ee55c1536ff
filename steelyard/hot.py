"""Blocks that have just been written and are still in memory, for who digests the file in order: nothing is read back that is at hand."""

from __future__ import annotations

import threading

from steelyard.direct import aligned_buffer
from steelyard.staging import BLOCK_BYTES


class HotBlocks:
    """At most *count* blocks near the place that is being digested. Safe from any thread; never waits, so nothing can hang on it."""

    def __init__(self, count: int = 40) -> None:
        self._lock = threading.Lock()
        self._unmade = count
        self._window = count * BLOCK_BYTES
        self._spare: list[memoryview] = []
        self._held: dict[int, tuple[memoryview, memoryview]] = {}
        self._at = 0

    def buffer(self) -> memoryview:
        """A buffer of one block to begin with."""
        return aligned_buffer(BLOCK_BYTES)

    def swap(self, start: int, length: int, buffer: memoryview) -> memoryview:
        """Keep the block at *start* when it will be wanted soon, and return the buffer to go on with: a spare one, or the same."""
        with self._lock:
            if not self._at <= start < self._at + self._window or start in self._held:
                return buffer
            if not self._spare:
                if not self._unmade:
                    return buffer
                self._unmade -= 1
                self._spare.append(self.buffer())
            self._held[start] = (buffer[:length], buffer)
            return self._spare.pop()

    def take(self, at: int) -> tuple[memoryview, memoryview] | None:
        """The block that begins at *at*, and its buffer for give_back(); None when it is not at hand. What lies before *at* is let go."""
        with self._lock:
            self._at = at
            for start in [start for start in self._held if start < at]:
                self._spare.append(self._held.pop(start)[1])
            return self._held.pop(at, None)

    def give_back(self, buffer: memoryview) -> None:
        with self._lock:
            self._spare.append(buffer)
