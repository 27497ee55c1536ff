"""Whether a Prefect API is there: another program that took its port is none, and one that is busy is asked again."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from steelyard.orchestrator import answers, ask
from steelyard.standins.hub import LoopbackHub


def test_another_program_on_that_port_is_no_server(hub: LoopbackHub) -> None:
    assert not answers(f"{hub.endpoint}/api")
    hub.down()
    assert not answers(f"{hub.endpoint}/api")


@contextmanager
def server_that_says(*statuses: int) -> Iterator[tuple[str, list[int]]]:
    """Its address, and what it has still to say."""
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0))
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", left
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_is_busy_is_asked_again_for_a_while() -> None:
    with server_that_says(503, 503, 200) as (url, left):
        assert ask(url, "/x", patience_s=5) == {}
        assert not left


@pytest.mark.parametrize(("status", "patience_s"), [(503, 0), (409, 5)], ids=["nobody waits", "it said no"])
def test_other_answers_are_taken_at_once(status: int, patience_s: float) -> None:
    with server_that_says(status, 200) as (url, left):
        with pytest.raises(urllib.error.HTTPError):
            ask(url, "/x", patience_s=patience_s)
        assert left == [200]
