"""Events are alarms: each is handed over with the server's word for it, also where the server is busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.events import tell
from steelyard.report import Report, Row


class BusyServer(ThreadingHTTPServer):
    """Says 503 to the first *busy* posts of events, then takes them."""

    busy = 0
    tries = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[dict[str, object]] = []


class _Handler(BaseHTTPRequestHandler):
    server: BusyServer

    def do_GET(self) -> None:
        if "csrf" in self.path:
            self._answer(422, b'{"detail": "CSRF protection is disabled."}')
        else:
            self._answer(200, b'"3.8.8"')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if not self.path.startswith("/api/events"):
            self._answer(200, b"{}")
            return
        self.server.tries += 1
        if self.server.tries <= self.server.busy:
            self._answer(503, b"{}")
            return
        self.server.taken += json.loads(body)
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[BusyServer]:
    with BusyServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api", PREFECT_CLIENT_MAX_RETRIES: 5}):
            yield server
        server.shutdown()
        thread.join()


def found(count: int) -> Report:
    facts = {"verdict": "corrupt", "why": "bytes 0 to 8"}
    return Report("verify", [Row(f"m{number}", "w.pt", "store", "", facts, 1) for number in range(count)])


def test_an_event_is_handed_over_though_the_server_is_busy(busy: BusyServer) -> None:
    busy.busy = 2
    tell(None, found(1))
    assert busy.tries == 3
    assert [(one["event"], one["resource"]) for one in busy.taken] == [
        (
            "steelyard.verify.failed",
            {"prefect.resource.id": "steelyard.model.m0", "prefect.resource.name": "w.pt in store is corrupt (bytes 0 to 8)"},
        )
    ]


def test_a_server_that_stays_busy_is_a_warning_and_no_failed_run(busy: BusyServer, capsys: pytest.CaptureFixture[str]) -> None:
    busy.busy = 100
    tell(None, found(1))
    assert busy.taken == []


def test_hundreds_of_events_go_in_a_few_requests(busy: BusyServer) -> None:
    tell(None, found(120))
    assert (busy.tries, len(busy.taken)) == (3, 120)
