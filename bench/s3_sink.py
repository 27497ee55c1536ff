"""A sink that answers the S3 calls of an upload and a download at the speed of memory, to race clients on: bodies are thrown away unread.

    python bench/s3_sink.py --port 9000 --file weights.bin     GET of a key with /down/ in it is answered out of that file

It checks nothing and keeps nothing but sizes and the checksums it is told: correctness is proven against a real server (tests/copies).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import itertools
import os
import re
import socket
import ssl
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

BLOCK = 1 << 20
DOWN = "/down/"  # keys with this in them are the file, before anything was sent there
WHEN = "Mon, 01 Jan 2024 00:00:00 GMT"


@dataclass
class Stored:
    """What is known of an object or part: no bytes."""

    size: int
    etag: str
    crc: str = ""


@dataclass
class Sink:
    """The state shared by all connections."""

    file: Path | None
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, dict[int, Stored]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    tls: ssl.SSLContext | None = None

    def serve(self, port: int) -> None:
        """Listen on the loopback for ever; prints the port, for whoever started it."""
        with socket.create_server(("127.0.0.1", port), backlog=256) as listener:
            sys.stdout.write(f"{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            while True:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        rest = b""
        if self.tls is not None:
            try:
                client = self.tls.wrap_socket(client, server_side=True)
            except OSError:
                return
        with client, contextlib.suppress(ConnectionError):
            while True:
                while b"\r\n\r\n" not in rest:
                    data = client.recv(65536)
                    if not data:
                        return
                    rest += data
                head, _, rest = rest.partition(b"\r\n\r\n")
                rest = self._request(client, head.decode("latin-1"), rest)

    def _request(self, client: socket.socket, head: str, rest: bytes) -> bytes:
        """Answer one request; what was read beyond it comes back."""
        line, *lines = head.split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        path, _, query = target.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        taken, rest = rest[:length], rest[length:]
        _throw_away(client, length - len(taken))
        # aws-chunked bodies are framed; what counts is the length inside.
        size = int(headers.get("x-amz-decoded-content-length", length))
        key = unquote(path)
        if method == "PUT" and "partNumber" in asked:
            part = self._stored(size, headers)
            self.uploads.setdefault(asked["uploadId"], {})[int(asked["partNumber"])] = part
            _answer(client, 200, {"ETag": f'"{part.etag}"', **_crc(part)})
        elif method == "PUT":
            stored = self.objects[key] = self._stored(size, headers)
            _answer(client, 200, {"ETag": f'"{stored.etag}"', **_crc(stored)})
        elif method == "POST" and "uploads" in asked:
            upload = f"upload-{next(self.numbers)}"
            self.uploads[upload] = {}
            _xml(
                client,
                f"<InitiateMultipartUploadResult><Key>{escape(key)}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>",
            )
        elif method == "POST" and "uploadId" in asked:
            stored = self.objects[key] = self._complete(asked["uploadId"], headers)
            _xml(client, f"<CompleteMultipartUploadResult><ETag>&quot;{stored.etag}&quot;</ETag></CompleteMultipartUploadResult>")
        elif method == "DELETE":
            self.objects.pop(key, None)
            _answer(client, 204)
        elif method == "HEAD":
            self._head(client, key)
        elif method == "GET" and ("list-type" in asked or "uploads" in asked or "location" in asked):
            _xml(client, _listing(asked))
        else:
            self._get(client, headers.get("range", ""))
        return rest

    def _stored(self, size: int, headers: dict[str, str]) -> Stored:
        md5 = headers.get("content-md5", "")
        etag = base64.b64decode(md5).hex() if md5 else f"{next(self.numbers):032x}"
        return Stored(size, etag, headers.get("x-amz-checksum-crc64nvme", ""))

    def _complete(self, upload: str, headers: dict[str, str]) -> Stored:
        parts = [part for _, part in sorted(self.uploads.pop(upload, {}).items())]
        joined = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False).hexdigest()
        return Stored(sum(part.size for part in parts), f"{joined}-{len(parts)}", headers.get("x-amz-checksum-crc64nvme", ""))

    def _head(self, client: socket.socket, key: str) -> None:
        stored = self.objects.get(key)
        if stored is None and self.file is not None and DOWN in key:
            stored = Stored(self.file.stat().st_size, "f" * 32 + "-1")
        if stored is not None:
            more = {"Accept-Ranges": "bytes", "Last-Modified": WHEN, "Content-Length": str(stored.size)}
            _answer(client, 200, {"ETag": f'"{stored.etag}"', **more, **_crc(stored)})
        elif key.strip("/").count("/"):
            _answer(client, 404)
        else:
            _answer(client, 200)  # a bucket

    def _get(self, client: socket.socket, asked: str) -> None:
        """A range of the file, by sendfile."""
        if self.file is None:
            _answer(client, 404)
            return
        with self.file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            first = int(match[1]) if match else 0
            last = min(int(match[2]) if match and match[2] else size - 1, size - 1)
            ranged = {"Content-Range": f"bytes {first}-{last}/{size}"} if match else {}
            length = {"Content-Length": str(last - first + 1), "Last-Modified": WHEN}
            _answer(client, 206 if match else 200, {"ETag": '"' + "f" * 32 + "-1" + '"', **length, **ranged})
            at = first
            while at <= last:
                if self.tls is None:
                    at += os.sendfile(client.fileno(), source.fileno(), at, last + 1 - at)
                else:
                    data = os.pread(source.fileno(), min(BLOCK, last + 1 - at), at)
                    client.sendall(data)
                    at += len(data)


def _throw_away(client: socket.socket, count: int) -> None:
    """Take *count* bytes off the socket; MSG_TRUNC (tcp(7)) drops them in the kernel, so that nothing is copied. TLS must be read."""
    buffer = bytearray(BLOCK)
    flags = 0 if isinstance(client, ssl.SSLSocket) else socket.MSG_TRUNC
    while count > 0:
        got = client.recv_into(buffer, min(count, BLOCK), flags)
        if not got:
            raise ConnectionError
        count -= got


def _crc(stored: Stored) -> dict[str, str]:
    return {"x-amz-checksum-crc64nvme": stored.crc, "x-amz-checksum-type": "FULL_OBJECT"} if stored.crc else {}


def _answer(client: socket.socket, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
    headers = {"Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    client.sendall(f"HTTP/1.1 {status} Sink\r\n{lines}\r\n".encode() + body)


def _xml(client: socket.socket, body: str) -> None:
    _answer(client, 200, {"Content-Type": "application/xml"}, f'<?xml version="1.0" encoding="UTF-8"?>{body}'.encode())


def _listing(asked: dict[str, str]) -> str:
    if "uploads" in asked:
        return "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
    if "location" in asked:
        return "<LocationConstraint/>"
    return "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one; it is printed")
    parser.add_argument("--file", type=Path, help="what GET of a key with /down/ in it answers")
    parser.add_argument("--cert", type=Path, help="serve https with this certificate")
    parser.add_argument("--key", type=Path, help="its key")
    options = parser.parse_args()
    context = None
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert, options.key)
    with contextlib.suppress(KeyboardInterrupt):
        Sink(options.file, tls=context).serve(options.port)
