"""Reading a weights file by few and bounded ranges, whether it is local or each read is one HTTP request."""

from __future__ import annotations

from steelyard.checkpoint.reasons import NotWeights
from steelyard.source import BytesFile, ByteSource, LocalFile, read_at

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 256 * 1024
LOCAL_TAIL_BYTES = 64 * 1024
REMOTE_WINDOW_BYTES = 128 * 1024
MAX_REMOTE_REQUESTS = 24


class RangeReader:
    """Reads ranges of *source*, keeps the large ones, and counts: `.requests`, `.bytes_read`.

    A remote source answers small reads from windows already fetched; a miss fetches one window. A local file is read exactly, since
    a small read there costs microseconds while a cached window costs memory.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.size_bytes = source.size_bytes
        self.is_local = isinstance(source, LocalFile | BytesFile)
        self.requests = 0
        self.bytes_read = 0
        self._kept: list[tuple[int, bytes]] = []

    def held(self, offset: int, length: int) -> bytes | None:
        """The range if it was fetched already, else None: costs no request."""
        for start, data in self._kept:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        return None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes from *offset*, fewer where the file ends. Ranges outside the file are empty."""
        length = max(0, min(length, self.size_bytes - offset))
        if offset < 0 or length == 0:
            return b""
        kept = self.held(offset, length)
        if kept is not None:
            return kept
        if self.is_local:
            return self._fetch(offset, length)
        if self.requests >= MAX_REMOTE_REQUESTS:
            raise NotWeights("too-many-requests", f"more than {MAX_REMOTE_REQUESTS} requests would be needed to look into this remote file")
        window = self._fetch(offset, max(length, min(REMOTE_WINDOW_BYTES, self.size_bytes - offset)))
        self._kept.append((offset, window))
        return window[:length]

    def keep(self, offset: int, length: int) -> bytes:
        """Like `read`, and later reads inside this range cost nothing."""
        length = max(0, min(length, self.size_bytes - offset))
        kept = self.held(offset, length)
        if kept is not None:
            return kept
        data = self._fetch(offset, length)
        self._kept.append((offset, data))
        return data

    def head(self) -> bytes:
        return self.keep(0, HEAD_BYTES)

    def tail(self) -> tuple[int, bytes]:
        """The last part of the file and where it starts."""
        start = max(0, self.size_bytes - (LOCAL_TAIL_BYTES if self.is_local else TAIL_BYTES))
        return start, self.keep(start, self.size_bytes - start)

    def _fetch(self, offset: int, length: int) -> bytes:
        data = read_at(self._source, offset, length)
        self.requests += 1
        self.bytes_read += len(data)
        if len(data) < length:
            raise NotWeights("cut-off", f"the file ends at byte {offset + len(data)}, its size was said to be {self.size_bytes}")
        return data
