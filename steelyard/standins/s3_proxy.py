"""Bad weather in front of a real S3 server: a proxy on the loopback that resets, answers 503, flips a byte, cuts, stalls, and counts what passes.

Requests are passed on byte for byte with the Host they were signed for, so the server's check of the signature holds. Ask for faults by sentence:

    proxy.fault(flip_up(at=1000), method="PUT", query="partNumber=2")
    proxy.fault(reset(), times=5)
    with proxy.weather(answer(503), seconds=60): …

It also plays an archive, which no server of one's own has: proxy.archive("weights.pt") lets HEAD say so, refuses GET and takes RestoreObject.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from steelyard.standins.s3_archive import Archived
from steelyard.standins.s3_faults import Fault, Rule, flipped, reset
from steelyard.standins.s3_wire import CHUNKED, CLOSE, EXPECT, Hangup, Seen, Stream, length_in


class S3Proxy:
    """Stands before 127.0.0.1:*port*. Use as a context manager; *requests* is the log."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.requests: list[Seen] = []
        self._rules: list[Rule] = []
        self._archived: list[Archived] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="s3-proxy", daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    # --- asking for faults

    def fault(
        self, fault: Fault, *, method: str = "", key: str = "", query: str = "", header: str = "", skip: int = 0, times: float = 1
    ) -> None:
        """Do *fault* to the next *times* requests with this method, and with *key*, *query* and *header* (lower case) in theirs.

        The first *skip* such requests go well.
        """
        with self._lock:
            self._rules.append(Rule(fault, method, key, query, header, skip, times))

    def archive(self, key: str, storage_class: str = "GLACIER") -> Archived:
        """From now on objects with *key* in theirs lie in an archive; set the state of what is returned to let time pass."""
        one = Archived(key, storage_class)
        with self._lock:
            self._archived.append(one)
        return one

    @contextlib.contextmanager
    def weather(self, fault: Fault, seconds: float) -> Iterator[None]:
        """Do *fault* to every request for *seconds* from now."""
        rule = Rule(fault, "", "", "", "", 0, float("inf"), time.monotonic() + seconds)
        with self._lock:
            self._rules.append(rule)
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):  # clear() may have come first
                self._rules.remove(rule)

    def clear(self) -> None:
        """Forget faults and log."""
        with self._lock:
            self._rules.clear()
            self._archived.clear()
            self.requests.clear()

    def count(self, method: str = "", key: str = "", query: str = "") -> int:
        rule = Rule(reset(), method, key, query, "", 0, 0)
        with self._lock:
            return sum(rule.fits(seen) for seen in self.requests)

    @property
    def bytes_up(self) -> int:
        with self._lock:
            return sum(seen.bytes_up for seen in self.requests)

    @property
    def bytes_down(self) -> int:
        with self._lock:
            return sum(seen.bytes_down for seen in self.requests)

    def _choose(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.requests.append(seen)
            for rule in self._rules:
                if not rule.fits(seen) or time.monotonic() > rule.until:
                    continue
                rule.hits += 1
                if rule.skip < rule.hits <= rule.skip + rule.times:
                    seen.fault = rule.fault.kind
                    return rule.fault
        return None

    # --- the wire

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="s3-proxy-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with self._lock:
            self._open.add(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = socket.create_connection(self._upstream, timeout=60)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends = Stream(client), Stream(server)
            while self._one(*ends):
                pass
        except Hangup as hangup:
            if hangup.hard:
                # Linger of zero seconds: closing sends RST and not FIN.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
            if server is not None:
                server.close()

    def _one(self, client: Stream, server: Stream) -> bool:
        """Pass one request and its answer; False when the connection is to end."""
        head = client.head()
        if not head:
            return False
        method, _, rest = head.partition(b" ")
        path, _, query = rest.partition(b" ")[0].decode("latin-1").partition("?")
        seen = Seen(method.decode(), unquote(path), query, head.decode("latin-1").lower())
        fault = self._choose(seen)
        kind = fault.kind if fault else ""
        at = fault.at if fault else 0
        if kind == "reset":
            raise Hangup(hard=True)
        length = length_in(head)
        frozen = next((one for one in self._archived if one.key in seen.key), None)
        if frozen is not None and frozen.keeps(client, seen, length):
            return True
        if fault is not None and kind == "answer":
            for block in client.body(length):
                seen.bytes_up += len(block)
            seen.status = fault.status
            client.send(b"HTTP/1.1 %d Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % fault.status)
            return False
        server.send(head)
        if EXPECT.search(head):
            early = server.head()
            if not early.startswith(b"HTTP/1.1 100"):
                server.unread(early)
                return self._answer(client, server, seen, fault, bodyless=False) and False
            client.send(early)
        for block in client.body(length):
            if kind == "flip-up" and seen.bytes_up <= at < seen.bytes_up + len(block):
                block = flipped(block, at - seen.bytes_up)
            if kind == "cut-up" and seen.bytes_up + len(block) > at:
                raise Hangup(hard=True)
            server.send(block)
            seen.bytes_up += len(block)
        return self._answer(client, server, seen, fault, method == b"HEAD", frozen.headers if frozen and method == b"HEAD" else b"")

    def _answer(self, client: Stream, server: Stream, seen: Seen, fault: Fault | None, bodyless: bool, more: bytes = b"") -> bool:
        head = server.head()
        while head.startswith(b"HTTP/1.1 100"):
            client.send(head)
            head = server.head()
        if not head:
            raise Hangup
        status = int(head[9:12])
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        length: int | None = 0
        if not bodyless and status not in {204, 304}:
            length = None if CHUNKED.search(head) else length_in(head)
        if kind == "lose":
            for _ in server.body(length):
                pass
            raise Hangup(hard=True)
        if fault is not None and kind == "stall" and at == 0:
            self._closing.wait(fault.seconds)
        client.send(head[:-2] + more + b"\r\n" if more else head)
        for block in server.body(length):
            if kind == "flip-down" and seen.bytes_down <= at < seen.bytes_down + len(block):
                block = flipped(block, at - seen.bytes_down)
            if kind == "cut-down" and seen.bytes_down + len(block) > at:
                client.send(block[: at - seen.bytes_down])
                raise Hangup
            if fault is not None and kind == "stall" and 0 < at < seen.bytes_down + len(block) and fault.seconds:
                self._closing.wait(fault.seconds)
                kind = ""
            client.send(block)
            seen.bytes_down += len(block)
        seen.status = status
        return not CLOSE.search(head)

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
