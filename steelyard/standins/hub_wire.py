"""Sockets: listening that can be switched off and on, sending at the speed asked for, and a log of what was sent."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import struct
import termios
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Protocol

from steelyard.standins.hub_data import Body
from steelyard.standins.hub_reply import Asked, Mark, Port, Reply

SENDFILE_BYTES = 4 << 20
SLICE_S = 0.02
"""With a speed limit, what is sent at once is what the limit allows in this time."""


@dataclass
class Request:
    """A line of the log. *bytes_sent* counts the body and grows while it is sent; *status* 0: closed without an answer."""

    method: str
    path: str
    range: str | None
    status: int
    bytes_sent: int
    port: Port
    kind: str
    had_token: bool
    at: float = field(default_factory=time.monotonic)


class Pace:
    """A speed limit shared by all connections; None is no limit, and it may change at any time."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._lock = threading.Lock()
        self._free_at = 0.0

    def delay_s(self, count: int, limit: float | None) -> float:
        """Take *count* bytes out of the budget and say how long to wait before the next are sent."""
        own = count / limit if limit else 0.0
        with self._lock:
            if not self.bytes_per_s:
                return own
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.bytes_per_s
            return max(own, self._free_at - now)

    def slice_bytes(self, limit: float | None) -> int:
        rates = [rate for rate in (limit, self.bytes_per_s) if rate]
        return max(1, min(SENDFILE_BYTES, int(min(rates) * SLICE_S))) if rates else SENDFILE_BYTES


class Answering(Protocol):
    """What the wire needs to know of the Hub behind it."""

    pace: Pace
    closing: threading.Event

    def answer(self, asked: Asked) -> tuple[Reply, Request]: ...

    def expire_urls(self) -> None: ...


class Hangup(Exception):
    """The connection ends here."""


class Listener:
    """A port on the loopback that the system chose, with a thread for every connection; down() and up() keep the port."""

    def __init__(self, port: Port, hub: Answering) -> None:
        self._role, self._hub = port, hub
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._socket = self._bind(0)
        self.port: int = self._socket.getsockname()[1]
        self.listening = False
        self.up()

    def _bind(self, port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        return made

    def up(self) -> None:
        if not self.listening:
            self._socket.listen(128)
            self.listening = True
            threading.Thread(target=self._accept, args=(self._socket,), name=f"hub-{self._role}", daemon=True).start()

    def down(self) -> None:
        """Refuse connections and cut those that are open."""
        if self.listening:
            self.listening = False
            self._shut()
            # Bound and not listening: the system refuses connections, and nobody else is given the port.
            self._socket = self._bind(self.port)

    def close(self) -> None:
        self.listening = False
        self._shut()

    def _shut(self) -> None:
        # shutdown() wakes the thread in accept(); close() alone would leave it there.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            if not self.listening:  # accepted while going down, too late to be cut with the others
                connection.close()
                return
            threading.Thread(target=self._serve, args=(connection,), name=f"hub-{self._role}-connection", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Conversation(connection, self._role, self._hub)
        except (OSError, Hangup):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


class Conversation(BaseHTTPRequestHandler):
    """One connection: HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    server_version = "steelyard-standin"
    sys_version = ""

    def __init__(self, connection: socket.socket, port: Port, hub: Answering) -> None:
        self._port, self._hub = port, hub
        super().__init__(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]

    def _answer(self) -> None:
        payload = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self._port, self.command, self.path, headers, payload)
        reply, line = self._hub.answer(asked)
        if reply.wait_s:
            self._pause(reply.wait_s)
        if reply.silent:
            self.close_connection = True
            return
        self._send_head(reply)
        if self.command != "HEAD" and reply.status not in (204, 304):
            self._send_body(reply, line)
        if int(reply.headers.get("Content-Length", len(reply.body))) != len(reply.body):
            # The claim and the body differ: only the end of the connection says where the next reply would begin.
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _send_head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        headers = dict(reply.headers)
        if reply.gzip:
            headers |= {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
        elif reply.status not in (204, 304):
            headers.setdefault("Content-Length", str(len(reply.body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, reply: Reply, line: Request) -> None:
        if reply.gzip:
            self._send_gzip(reply.body, line)
            return
        done = 0
        for mark in sorted(reply.marks, key=lambda mark: mark.at_bytes):
            stop = min(mark.at_bytes, len(reply.body))
            self._send_part(reply.body.part(done, stop), line, reply.bytes_per_s)
            done = stop
            if mark.at_bytes <= len(reply.body):
                self._at_mark(mark)
        self._send_part(reply.body.part(done, len(reply.body)), line, reply.bytes_per_s)

    def _pause(self, seconds: float) -> None:
        if self._hub.closing.wait(seconds):
            raise Hangup

    def _at_mark(self, mark: Mark) -> None:
        if mark.act == "pause":
            self._pause(mark.pause_s)
            return
        if mark.act == "expire":
            self._hub.expire_urls()
        self._drain()
        if mark.act != "cut":
            # With linger 0 closing sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Hangup

    def _drain(self) -> None:
        """Wait until the peer's side holds all that was sent: a reset throws away what still waits on ours."""
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, b"\0\0\0\0"))
            if not waiting:
                return
            time.sleep(0.001)

    def _send_part(self, body: Body, line: Request, limit: float | None) -> None:
        file = body.content.open() if not body.edits and body.stop <= body.content.size_bytes else None
        try:
            if file:
                offset = body.start
                while offset < body.stop:
                    step = min(self._hub.pace.slice_bytes(limit), body.stop - offset)
                    sent = os.sendfile(self.connection.fileno(), file.fileno(), offset, step)
                    if sent == 0:
                        raise Hangup  # the file on disk was cut short under us
                    offset += sent
                    self._sent(sent, line, limit)
                return
        finally:
            if file:
                file.close()
        for piece in self._paced(body, limit):
            self.connection.sendall(piece)
            self._sent(len(piece), line, limit)

    def _paced(self, body: Body, limit: float | None) -> Iterator[memoryview]:
        for chunk in body.chunks():
            rest = memoryview(chunk)
            while rest:
                step = self._hub.pace.slice_bytes(limit)
                yield rest[:step]
                rest = rest[step:]

    def _sent(self, count: int, line: Request, limit: float | None) -> None:
        line.bytes_sent += count
        delay = self._hub.pace.delay_s(count, limit)
        if delay > 0:
            self._pause(delay)

    def _send_gzip(self, body: Body, line: Request) -> None:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        for packed in itertools.chain(map(packer.compress, body.chunks()), map(packer.flush, [zlib.Z_FINISH])):
            if packed:
                self.connection.sendall(b"%x\r\n%b\r\n" % (len(packed), packed))
                line.bytes_sent += len(packed)
        self.connection.sendall(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the log is Request's."""
