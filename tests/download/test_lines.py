"""Servers that are not our stand-in: no lengths, no keep-alive, other redirects, TLS, and files that only the Hub's own client can bring."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard.copies.hub import HubFile
from steelyard.errors import BadAnswer, OtherSide
from steelyard.fetch import fetch, fetch_small
from steelyard.hub_errors import retry_after
from steelyard.line import Address, Line
from steelyard.lock import LockedFile
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.weather import CONDITION, Trouble
from steelyard.xet import fetch_by_library

from .world import FILE, MIB, REPO, WEIGHTS, codes, got, run, sha256

LOCKED = LockedFile(FILE, len(WEIGHTS), sha256=sha256(WEIGHTS))


class Plain(http.server.BaseHTTPRequestHandler):
    """The simplest server there is: HTTP/1.0, the whole file, no length, and the connection's end is the end."""

    lengths = False
    ranges = False

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        data, status = WEIGHTS, 200
        asked = self.headers.get("Range")
        if asked and self.ranges:
            first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
            data, status = WEIGHTS[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(WEIGHTS)}")
        if self.lengths:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


class Chunked(Plain):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(WEIGHTS), 100_000):
            part = WEIGHTS[at : at + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Ranged(Plain):
    ranges = lengths = True


class RefusesHead(Ranged):
    """Addresses on the Hub's own host that are signed for GET alone."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        moved = "/resolve/" in self.path
        self.send_response(302 if moved else 403)
        if moved:
            self.send_header("Location", "/signed?for=get")
            self.send_header("X-Linked-Etag", f'"{LOCKED.etag}"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(handler: type[Plain], context: ssl.SSLContext | None = None) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def line_to(endpoint: str) -> Line:
    return Line(endpoint, REPO, "0" * 40, timeout_s=2.0)


@pytest.mark.parametrize("handler", [Plain, Chunked, Ranged, RefusesHead])
def test_the_right_bytes_come_from_servers_of_other_kinds(tmp_path: Path, handler: type[Plain]) -> None:
    with serving(handler) as endpoint:
        fetched = fetch([line_to(endpoint)], LOCKED, tmp_path / "staging", tmp_path / "quarantine", connections=4, patience_s=2)
        assert fetched.entry.sha256 == LOCKED.sha256
        small = LockedFile("x.bin", len(WEIGHTS), sha256=LOCKED.sha256)
        assert fetch_small([line_to(endpoint)], small, patience_s=2)[0] == WEIGHTS


def test_a_server_that_speaks_no_http_is_endured_as_weather(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OtherSide) as caught:
            fetch([line_to(endpoint)], LOCKED, tmp_path / "s", tmp_path / "q", connections=2, patience_s=0.5)
        assert "not HTTP" in caught.value.message or "reset" in caught.value.message


def test_a_certificate_that_nobody_vouches_for_is_not_waited_out(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl here to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with serving(Ranged, context) as endpoint, pytest.raises(BadAnswer) as caught:
        fetch([line_to(endpoint)], LOCKED, tmp_path / "s", tmp_path / "q", connections=2, patience_s=60)
    assert "certificate" in caught.value.message
    assert "SSL_CERT_FILE" in caught.value.hint


def test_tls_that_fails_is_weather() -> None:
    with serving(Ranged) as endpoint, pytest.raises(Trouble) as caught:
        line_to(endpoint.replace("http", "https")).address(LOCKED)
    assert caught.value.reaction.what == "TLS failed"


def test_names_that_do_not_resolve_are_weather() -> None:
    with pytest.raises(Trouble) as caught:
        line_to("http://no-such-host.invalid").address(LOCKED)
    assert "no connection" in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=12;t=55'}, None),
        ({"ratelimit": "limit=100, remaining=0, reset=50"}, 50.0),
        ({}, None),
    ],
)
def test_a_wait_is_read_in_every_form_it_is_asked_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


class LeadsOn(Ranged):
    """An address that leads on once more, as one does from http to https, or from one CDN to another."""

    seen: list[str | None]

    def do_HEAD(self) -> None:
        self.moved(f"http://localhost:{self.server.server_address[1]}/first?x")  # type: ignore[str-bytes-safe]

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.do_HEAD()
        elif self.path.startswith("/first"):
            self.seen.append(self.headers.get("Authorization"))
            self.moved("/second?x")
        else:
            self.seen.append(self.headers.get("Authorization"))
            super().do_GET()

    def moved(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_an_address_that_leads_on_is_followed_without_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[str | None] = []
    with serving(type("Chain", (LeadsOn,), {"seen": seen})) as endpoint:
        fetched = fetch([line_to(endpoint)], LOCKED, tmp_path / "staging", tmp_path / "quarantine", connections=2, patience_s=2)
        assert fetched.entry.sha256 == LOCKED.sha256
        assert line_to(endpoint).small(LOCKED) == WEIGHTS
    assert set(seen) == {None}


class SendsNowhere(Ranged):
    """A redirect whose address is none."""

    location = ""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.location)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize("location", ["http://[::bad/x", "http://host:port/x", "ftp://host/x", "file:///etc/passwd", "http:///x", ""])
def test_a_redirect_to_nowhere_is_a_lie_by_name(location: str) -> None:
    with serving(type("Nowhere", (SendsNowhere,), {"location": location})) as endpoint:
        for ask in (line_to(endpoint).address, line_to(endpoint).small):
            with pytest.raises(Trouble) as caught:
                ask(LOCKED)
            assert caught.value.reaction is CONDITION["redirects"]


def test_secrets_of_an_address_show_nowhere() -> None:
    address = Address("https://cdn.example/a/b?X-Signature=secret", {"authorization": "Bearer hf_secret"}, 1)
    assert "secret" not in repr(address)


def test_no_signature_and_no_token_reach_the_log(
    hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add_token("hf_secret")
    caplog.set_level(logging.DEBUG, "steelyard")
    for sentence in ("403", "close", "reset after 0 bytes", "html"):
        hub.faults.add("cdn", sentence, times=1)
    hub.faults.add("resolve", "close", times=1)
    report = run(site)
    text = caplog.text + json.dumps(report.as_json())
    assert report.ok
    assert "HTTP 403" in caplog.text
    assert "X-Signature" not in text
    assert "hf_secret" not in text


# --- only by the Hub's own client


def test_the_librarys_way_is_proven_like_our_own(hub: LoopbackHub, tmp_path: Path) -> None:
    line = Line(hub.endpoint, REPO, hub.repo(REPO).branches["main"], timeout_s=2.0)
    fetched = fetch_by_library(line, LOCKED, tmp_path, patience_s=30)
    assert fetched.entry.sha256 == LOCKED.sha256
    (partial,) = tmp_path.glob("*.partial")
    assert partial.read_bytes() == WEIGHTS
    hub.faults.add("cdn", "flip byte 9")
    with pytest.raises(Exception, match="it published"):
        fetch_by_library(line, LOCKED, tmp_path / "again", patience_s=30)
    assert list((tmp_path / "again").iterdir()) == []


def test_a_file_that_plain_http_is_refused_comes_by_the_library_when_the_hub_offers_xet(
    hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Xet server is at hand: that the library is asked, and its bytes proven and published, is what can be shown here."""
    hub.routes.offer_xet = True
    refusing = hub.faults.add("cdn", "404")
    asked = []

    def by_library(line: Line, *args: object, **more: object):  # type: ignore[no-untyped-def]
        asked.append(line.offers_xet(LOCKED))
        hub.routes.offer_xet, refusing.times = False, 0
        return fetch_by_library(line, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("steelyard.xet.fetch_by_library", by_library)
    report = run(site)
    assert report.ok, codes(report)
    assert asked == [True]


def test_without_xet_a_refusal_stays_one(hub: LoopbackHub, site: Site) -> None:
    hub.faults.add("cdn", "404")
    assert codes(run(site)) == ["gone"]


# --- what a person sees


def test_progress_tells_percent_rate_and_what_is_left(hub: LoopbackHub, site: Site) -> None:
    hub.rate_limit_bytes_per_s = 3 * MIB
    hub.faults.add("cdn", "reset after 1 MiB", times=1)
    command = [sys.executable, "-m", "steelyard", "download", "--config", str(site.path), "--here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (line, *_) = [line for line in done.stderr.splitlines() if "% of 9.4 MB" in line]
    assert "/s" in line
    assert "left" in line
    assert "1 retries" in line
    assert FILE in done.stdout


def test_a_row_tells_what_contract_names(hub: LoopbackHub, site: Site) -> None:
    row = got(site, run(site))
    assert (row.pop("trust"), row.pop("warnings")) == ("unsupported", ["unknown-format"])
    assert row.pop("warning") and row.pop("looked")["bytes_read"] < MIB
    assert row | {"path": ""} == {
        "model": "m",
        "file": FILE,
        "copy": "store",
        "path": "",
        "action": "downloaded",
        "commit": hub.repo(REPO).branches["main"],
        "repo_id": REPO,
        "sha256": sha256(WEIGHTS),
        "size_bytes": len(WEIGHTS),
        "bytes_fetched": len(WEIGHTS),
    }


def test_a_piece_of_a_file_is_read_through_the_same_weather(hub: LoopbackHub, site: Site) -> None:
    agreed = site.hub.listing(REPO, "main")
    line = Line(hub.endpoint, REPO, agreed.commit, timeout_s=1.0)
    source = HubFile(lambda: [line], LOCKED, patience_s=2)
    for sentence in ("503", "close", "reset after 4 kB", "expire", "shift range by 8", "ignore range"):
        hub.faults.add("cdn", sentence, times=1)
    buffer = memoryview(bytearray(64 * 1024))
    assert source.readinto(5 * MIB, buffer) == len(buffer)
    assert bytes(buffer) == WEIGHTS[5 * MIB : 5 * MIB + len(buffer)]
    assert source.readinto(len(WEIGHTS) - 3, buffer) == 3
    assert hub.cdn_saw_token == 0
