"""A source that is not a local file: every read is counted as the request it would be."""

from __future__ import annotations

from pathlib import Path


class Remote:
    def __init__(self, path: Path) -> None:
        self.name = f"https://example.test/{path.name}"
        self.size_bytes = path.stat().st_size
        self.requests: list[tuple[int, int]] = []
        self._file = path.open("rb")

    def readinto(self, offset: int, buffer: memoryview) -> int:
        self.requests.append((offset, len(buffer)))
        self._file.seek(offset)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()

    @property
    def bytes_read(self) -> int:
        return sum(length for _, length in self.requests)
