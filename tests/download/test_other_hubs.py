"""Hubs that have less of the API than the Hub: what they publish is agreed on in whatever way they tell it, and what they do not tell is said."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from steelyard import steps
from steelyard.agree import proposal
from steelyard.config import HubConfig
from steelyard.download import download
from steelyard.errors import BadAnswer, Gone, Unreachable
from steelyard.hub import Hub
from steelyard.published import locked_file
from steelyard.site import Site
from steelyard.steps import run_here
from steelyard.weather import CONDITION, Trouble, as_error

from .world import FILE, REPO, WEIGHTS, codes, left_behind, sha256

COMMIT = "1234567890" * 4
CONFIG = b'{"a": 1}'
FILES = {FILE: WEIGHTS, "configs/a.json": CONFIG}
EVERYTHING = frozenset({"page", "page of a revision", "digests on the page", "tree", "paths-info"})


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Modest(http.server.BaseHTTPRequestHandler):
    """A Hub on one port that *has* some ways to tell what it publishes, and answers *lacking* to all others."""

    protocol_version = "HTTP/1.1"
    has: Set[str] = EVERYTHING
    lacking = 404
    names: tuple[str, ...] = tuple(FILES)
    signed_for_get_alone = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        self.tell("paths-info", [entry(name) for name in asked if name in FILES])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        page = {"id": REPO, "sha": COMMIT, "siblings": [sibling(name, "digests on the page" in self.has) for name in self.names]}
        if path == f"/api/models/{REPO}":
            self.tell("page", page)
        elif "/revision/" in path:
            self.tell("page of a revision", page)
        elif "/tree/" in path:
            self.tell("tree", [entry(name) for name in self.names if name in FILES])
        elif "/resolve/" in path:
            self.file(path.partition("/resolve/")[2].partition("/")[2])
        elif path.startswith("/signed/"):
            refused = self.signed_for_get_alone and self.command == "HEAD"
            self.reply(403, b"") if refused else self.reply(200, FILES[path.removeprefix("/signed/")])
        else:
            self.reply(404, b"")

    def file(self, name: str) -> None:
        data, large = FILES.get(name), name == FILE
        if data is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(data) if large else git_sha1(data)}"'}
        if large and self.signed_for_get_alone:
            self.reply(302, b"", {**headers, "X-Linked-Size": str(len(data)), "Location": f"/signed/{name}"})
        else:
            self.reply(200, data, headers)

    def tell(self, way: str, what: Any) -> None:
        self.reply(200 if way in self.has else self.lacking, json.dumps(what).encode() if way in self.has else b"")

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        asked = self.headers.get("Range")
        if asked and status == 200:
            first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
            headers = {**(headers or {}), "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def sibling(name: str, digests: bool) -> dict[str, Any]:
    data = FILES.get(name, b"")
    lfs = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134}} if name == FILE else {}
    told = {"size": len(data), "blobId": git_sha1(data), **lfs}
    return {"rfilename": name, **(told if digests else {})}


def entry(name: str) -> dict[str, Any]:
    data = FILES[name]
    lfs = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}} if name == FILE else {}
    return {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data), **lfs}


@contextmanager
def modest_site(tmp_path: Path, *, named: bool = False, **traits: Any) -> Iterator[Site]:
    """A site whose Hub has the given traits; *named*: the config names each file."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Modest,), traits))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    config = tmp_path / "steelyard.toml"
    config.write_text(f'''
[store]
models = "{tmp_path}/models"
hf_home = "{tmp_path}/hf"
min_free = 0
[hub]
endpoint = "http://127.0.0.1:{server.server_address[1]}"
timeout = 2
patience = 2
[models.m]
repo_id = "{REPO}"
dir = "."
{f"files = {json.dumps(list(FILES))}" if named else ""}
''')
    try:
        yield Site.open(config)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("lacking", [404, 405, 501])
@pytest.mark.parametrize(
    ("has", "named"),
    [
        ({"page", "page of a revision", "digests on the page"}, False),
        ({"page", "digests on the page"}, False),
        ({"page", "page of a revision", "tree"}, False),
        ({"page", "page of a revision", "paths-info"}, False),
        ({"page", "page of a revision"}, False),
        ({"page"}, False),
        (set(), True),
    ],
    ids=["no tree", "no page of a revision", "digests in the tree", "digests of paths", "digests in headers", "a bare page", "only files"],
)
def test_a_hub_that_lacks_some_of_the_api_will_do(tmp_path: Path, has: set[str], lacking: int, *, named: bool) -> None:
    with modest_site(tmp_path, named=named, has=has, lacking=lacking) as site:
        report = download(site)
        if not has and lacking == 404:
            assert (report.exit_code, codes(report), left_behind(site)) == (4, ["gone"], []), "so does a repo look that is gone"
            return
        assert report.ok, codes(report)
        assert all((site.store.root / name).read_bytes() == data for name, data in FILES.items())
        locked = site.locked_model("m")
        assert locked is not None
        assert (locked.commit, {file.path: file.etag for file in locked.files}) == (
            COMMIT,
            {FILE: sha256(WEIGHTS), "configs/a.json": git_sha1(CONFIG)},
        )


def test_files_that_the_hub_names_and_tells_nothing_of_are_no_success(tmp_path: Path) -> None:
    with modest_site(tmp_path, has={"page", "page of a revision"}, names=(*FILES, "gone.bin")) as site, pytest.raises(BadAnswer):
        proposal(site, "m")


def test_a_repo_without_files_is_no_success(tmp_path: Path) -> None:
    with modest_site(tmp_path, names=()) as site:
        report = download(site)
        assert (report.exit_code, codes(report)) == (4, ["gone"])
        assert left_behind(site) == []


def test_nothing_at_all_is_told_as_the_hub_tells_it(tmp_path: Path) -> None:
    with modest_site(tmp_path, has=set()) as site, pytest.raises(Gone):
        proposal(site, "m")


def test_a_hub_that_takes_a_question_and_never_answers_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = Hub(HubConfig(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3, patience=1.0))
        began = time.monotonic()
        with pytest.raises(Unreachable, match="timed out"):
            hub.listing(REPO, "main")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("path", "size"), [(7, 5), ("a.bin", "5"), (None, 5), ("a.bin", 5.5)])
def test_a_name_or_size_that_is_none_is_no_answer_of_a_hub(path: object, size: object) -> None:
    with pytest.raises(BadAnswer):
        locked_file(path, size, "a" * 64, None)


def test_a_web_page_instead_of_the_api_is_no_api_that_is_lacking(tmp_path: Path) -> None:
    class Portal(Modest):
        def tell(self, way: str, what: object) -> None:
            self.reply(200, b"<!doctype html>")

    with modest_site(tmp_path, named=True, tell=Portal.tell) as site, pytest.raises(BadAnswer):
        proposal(site, "m")


def test_an_address_that_is_signed_for_get_alone_is_asked_by_get(tmp_path: Path) -> None:
    with modest_site(tmp_path, signed_for_get_alone=True) as site:
        assert download(site).ok
        assert (site.store.root / FILE).read_bytes() == WEIGHTS


@pytest.mark.parametrize("said", ["../../../etc/x", "0" * 63, "", None])
def test_what_can_be_no_digest_is_none(said: str | None) -> None:
    assert locked_file("a.bin", 1, said or "", said) is None
    assert locked_file("a.bin", 1, "A" * 64, None) == locked_file("a.bin", 1, "a" * 64, None)


def test_a_squall_that_was_waited_out_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TRIES", 3)
    trouble = Trouble(CONDITION["reset"])
    trouble.endured = True
    tries: list[int] = []

    def step() -> None:
        tries.append(1)
        raise as_error(trouble, "the Hub", REPO)

    with pytest.raises(Unreachable):
        run_here(step)
    assert len(tries) == 1


def test_who_is_asked_to_wait_an_hour_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TRIES", 3)

    def step() -> None:
        raise as_error(Trouble(CONDITION["reset"], retry_after_s=3600.0), "the Hub", REPO)

    began = time.monotonic()
    with pytest.raises(Unreachable, match="reset") as caught:
        run_here(step)
    assert "3600 s" in caught.value.hint
    assert time.monotonic() - began < 1
