"""HTTP/1.1 on a socket, by heads and bodies and byte for byte, and the line of the log that a request becomes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_BLOCK = 1 << 18


@dataclass
class Seen:
    """One request that came. *status* 0: no answer went back."""

    method: str
    key: str
    query: str
    headers: str = field(default="", repr=False)
    fault: str = ""
    status: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    body: bytes = field(default=b"", repr=False)
    """Of a request to bring something back."""


class Hangup(Exception):
    """The connection ends here; *hard*: by a reset."""

    def __init__(self, hard: bool = False) -> None:
        super().__init__()
        self.hard = hard


class Stream:
    """A socket read by heads and bodies."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        data = self.sock.recv(_BLOCK)
        self._rest += data
        return bool(data)

    def head(self) -> bytes:
        """Up to and with the empty line; b"" when the other end closed."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return b""
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def unread(self, data: bytes) -> None:
        self._rest = data + self._rest

    def body(self, length: int | None) -> Iterator[bytes]:
        """*length* bytes, or (None) all chunks with their framing."""
        if length is None:
            yield from self._chunks()
            return
        while length > 0:
            if not self._rest and not self._more():
                raise Hangup
            block, self._rest = self._rest[:length], self._rest[length:]
            length -= len(block)
            yield block

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._rest:
                if not self._more():
                    raise Hangup
            line, _, self._rest = self._rest.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            yield line + b"\r\n"
            yield from self.body(size + 2)
            if size == 0:
                return


def length_in(head: bytes) -> int:
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0
