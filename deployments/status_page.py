"""The status page beside the UI: on the loopback, made anew by a child process when someone asks and the last one is too old.

A child, because a look at a disk that hangs must not hold `up`; on the loopback only, whatever --host is, because it needs no password.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FRESH_S = 15.0
MAKE_S = 60.0
SILENCE_S = 10.0
"""A connection that says nothing for so long is closed."""
MOST_AT_ONCE = 16
LOOPBACK = "127.0.0.1"
NAMES = {LOOPBACK, "localhost"}
"""A page elsewhere that has its name point here (DNS rebinding) sends another Host, and gets nothing."""


class StatusPage:
    """Serves `/` and `/metrics` from *folder* until stopped."""

    def __init__(self, config: Path, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = dict(environment)
        self._files = {"/": (folder / "status.html", "text/html"), "/metrics": (folder / "steelyard.prom", "text/plain")}
        html, metrics = (self._files[path][0] for path in ("/", "/metrics"))
        asked = ["--config", str(config), "--html", str(html), "--metrics", str(metrics)]
        self._command = [sys.executable, "-m", "steelyard", "status", *asked]
        self._lock = threading.Lock()
        self._made_at = 0.0
        self._server: ThreadingHTTPServer | None = None

    def start(self, *ports: int) -> str:
        """Listen on the first of *ports* that is free (0: any) and return the address. :raises OSError: when none is."""
        handler = type("Handler", (_Handler,), {"page": self})
        for number, port in enumerate(ports):
            try:
                self._server = _Server((LOOPBACK, port), handler)
                break
            except OSError:
                if number == len(ports) - 1:
                    raise
        assert self._server is not None
        threading.Thread(target=self._server.serve_forever, name="status page", daemon=True).start()
        return f"http://{LOOPBACK}:{self._server.server_port}/"

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, type and body for a GET of *path*. What can't be made is said; an old page is never shown as if it were of now."""
        if path not in self._files:
            return HTTPStatus.NOT_FOUND, "text/plain", b"There are / and /metrics.\n"
        file, kind = self._files[path]
        with self._lock:
            if time.monotonic() - self._made_at > FRESH_S:
                why = self._make()
                if why:
                    return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"The status could not be made: {why}\n".encode()
                self._made_at = time.monotonic()
            try:
                return HTTPStatus.OK, kind, file.read_bytes()
            except OSError as error:
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"The status can't be read: {error.strerror}\n".encode()

    def _make(self) -> str:
        """Why it could not be made, or ""."""
        files = [file for file, _ in self._files.values()]
        try:
            before = [_state(file) for file in files]
            files[0].parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            done = subprocess.run(
                self._command, env=self._environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=MAKE_S, check=False
            )
            if not set(before) & {_state(file) for file in files}:
                return ""
        except subprocess.TimeoutExpired:
            return f"it took longer than {MAKE_S:.0f} s; does a drive hang?"
        except OSError as error:
            return error.strerror or str(error)
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[0][:300] if lines else f"exit code {done.returncode}"


def _state(file: Path) -> object:
    """Another one after each time the file was written; a file that is not there is like none."""
    try:
        seen = file.stat()
    except OSError:
        return object()
    return seen.st_ino, seen.st_mtime_ns


class _Server(ThreadingHTTPServer):
    """At most MOST_AT_ONCE connections; who comes when all are taken is sent away."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up in the middle is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    page: StatusPage
    timeout = SILENCE_S
    server_version = "steelyard"
    sys_version = ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in NAMES:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"Ask by 127.0.0.1 or localhost.\n")
        else:
            self._send(*self.page.answer(self.path.partition("?")[0]))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""
