"""The page of a repo, asked for by our own client: the token stays at home, every answer has an end, and nothing but a Hub's page is taken for one."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

from steelyard import hub_client, hub_page
from steelyard.config import HubConfig
from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Unreachable
from steelyard.hub import Hub
from steelyard.pools import file_url

COMMIT = "12345678" * 5
PAGE = {
    "id": "a/b",
    "sha": COMMIT,
    "cardData": {"license": "mit"},
    "securityRepoStatus": {"scansDone": True, "filesWithIssues": []},
    "siblings": [
        {"rfilename": "big.bin", "size": 3, "blobId": "f" * 40, "lfs": {"sha256": "a" * 64, "size": 7, "pointerSize": 134}},
        {"rfilename": "config.json", "size": 2, "blobId": "b" * 40},
    ],
}
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def hub_that(answer: Answer) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def sends(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(data)), **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def asked(endpoint: str, repo_id: str = "a/b", timeout_s: float = 2.0) -> Hub:
    return Hub(HubConfig(endpoint=endpoint, timeout=timeout_s, patience=0.0))


def test_what_a_page_tells_is_read_and_it_may_come_packed() -> None:
    with hub_that(sends(gzip.compress(json.dumps(PAGE).encode()), content_encoding="gzip")) as endpoint:
        told = asked(endpoint).listing("a/b", "main")
    assert (told.commit, told.scan, told.license) == (COMMIT, "safe", "mit")
    assert [(file.path, file.size_bytes, file.sha256, file.git_sha1) for file in told.files] == [
        ("big.bin", 7, "a" * 64, ""), ("config.json", 2, "", "b" * 40),
    ]  # fmt: skip


def test_the_token_goes_to_the_hub_and_not_where_it_sends_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[tuple[str, str | None]] = []

    def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(("elsewhere", handler.headers.get("authorization")))
        sends(json.dumps(PAGE).encode())(handler)

    with hub_that(elsewhere) as other:

        def home(handler: http.server.BaseHTTPRequestHandler) -> None:
            seen.append((handler.path, handler.headers.get("authorization")))
            there = f"{other}/x" if "new" in handler.path else "/api/models/a/new"
            sends(b"", 307, location=there)(handler)

        with hub_that(home) as endpoint:
            assert asked(endpoint).page("a/b", "main").commit == COMMIT
    assert [token for _, token in seen] == ["Bearer hf_secret", "Bearer hf_secret", None]
    assert seen[0][0] == "/api/models/a/b/revision/main?securityStatus=true&blobs=true"


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (sends(b"<html>log in</html>"), BadAnswer, "not what a Hub sends"),
        (sends(b"[1, 2]"), BadAnswer, "not what a Hub sends"),
        (sends(b"{" * 100_000), BadAnswer, "not what a Hub sends"),
        (sends(b"", 307, location="/again"), BadAnswer, "never answers"),
        (sends(b"", 302, location="ftp://x/y"), BadAnswer, "not what a Hub sends"),
        (sends(b"no gzip", content_encoding="gzip"), BadAnswer, "."),
        (sends(b"", 401, x_error_message="Invalid credentials in Authorization header"), AccessDenied, "does not know this token"),
        (sends(b"", 404, x_error_code="RevisionNotFound"), Gone, "no such revision"),
        (sends(b"", 503), Unreachable, "HTTP 503"),
        (sends(b"half of it", content_length="100"), Unreachable, "."),
    ],
)
def test_what_is_no_page_is_one_of_our_errors(answer: Answer, error: type[OtherSide], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.hub.random.uniform", lambda *_: 0.0)
    with hub_that(answer) as endpoint, pytest.raises(error, match=said):
        asked(endpoint).page("a/b", "main")


def test_an_answer_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_page, "MOST_BYTES", 1 << 20)
    with hub_that(sends(gzip.compress(bytes(8 << 20)), content_encoding="gzip")) as endpoint, pytest.raises(BadAnswer, match="more than"):
        asked(endpoint).page("a/b", "main")

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    began = time.monotonic()
    with hub_that(drip) as endpoint, pytest.raises(Unreachable, match="drips"):
        hub = asked(endpoint, timeout_s=0.2)
        hub.ask("a/b", lambda: hub_page.page_at(endpoint, "a/b", "main", 0.2), tries=1)
    assert time.monotonic() - began < hub_client.WHOLE_ANSWER_TIMEOUTS * 0.2 + 5


def test_offline_asks_nobody_and_a_name_that_no_hub_takes_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    for name in ("a--b/c", "a/b..c", "a/b.git", "a/" + "b" * 96):
        with pytest.raises(BadAnswer, match="no such repo_id"):
            asked(nobody).page(name, "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        asked(nobody).page("a/b", "main")


def test_a_file_lies_where_the_library_looks_for_it() -> None:
    from huggingface_hub import hf_hub_url

    for path in ("model.bin", "a b/ü%2F#?.bin", "x/y+z.txt"):
        for revision in (COMMIT, "refs/pr/1"):
            theirs = hf_hub_url("org/repo", path, revision=revision, endpoint="https://hub.example")
            assert file_url("https://hub.example", "org/repo", revision, path) == theirs
