"""The stand-in seen with plain HTTP: ranges, conditions, signed links, the log, the speed limit, being down and up."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from asking import README, REPO, WEIGHTS, ask

from steelyard.standins.hub import LoopbackHub

Link = Callable[[], str]
Resolve = Callable[..., str]
SIZE = len(WEIGHTS)


def test_a_large_file_redirects_to_the_cdn_and_a_small_one_is_served_at_once(hub: LoopbackHub, resolve: Resolve) -> None:
    large, small = ask(resolve()), ask(resolve("README.md"))
    assert large.status == 302
    assert large.headers["X-Linked-Size"] == str(SIZE)
    assert large.headers["X-Repo-Commit"] == small.headers["X-Repo-Commit"] == hub.repo(REPO).branches["main"]
    assert large.headers["Location"].startswith(hub.cdn_endpoint)
    assert ask(large.headers["Location"]).body == WEIGHTS
    assert (small.status, small.body) == (200, README)
    assert not [name for seen in (large, small) for name in seen.headers if name.lower().startswith("x-xet")]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1048570-", 1048570, SIZE),
        ("bytes=-6", SIZE - 6, SIZE),
        ("bytes=-99999999", 0, SIZE),
        ("bytes=5-99999999", 5, SIZE),
    ],
)
def test_a_range_is_answered_with_exactly_its_bytes(link: Link, asked: str, start: int, stop: int) -> None:
    seen = ask(link(), Range=asked)
    assert (seen.status, seen.headers["Content-Range"]) == (206, f"bytes {start}-{stop - 1}/{SIZE}")
    assert seen.body == WEIGHTS[start:stop]


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416_with_the_size(link: Link, asked: str) -> None:
    seen = ask(link(), Range=asked)
    assert (seen.status, seen.headers["Content-Range"]) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize("asked", ["bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=-"])
def test_a_range_that_is_none_or_several_gives_the_whole_file(link: Link, asked: str) -> None:
    seen = ask(link(), Range=asked)
    assert (seen.status, seen.body) == (200, WEIGHTS)


def test_conditions_are_heeded(link: Link) -> None:
    etag = ask(link(), "HEAD").headers["ETag"]
    assert ask(link(), Range="bytes=0-3", If_Range=etag).status == 206
    assert ask(link(), Range="bytes=0-3", If_Range='"other"').status == 200
    assert ask(link(), Range="bytes=0-3", If_Match=etag).status == 206
    assert ask(link(), If_Match='"other"').status == 412
    assert ask(link(), If_None_Match=etag).status == 304


def test_a_link_that_is_altered_or_expired_is_refused(hub: LoopbackHub, link: Link) -> None:
    assert ask(link() + "0").status == 403
    assert ask(link().partition("?")[0]).status == 403
    assert ask(link().replace("X-Epoch=0", "X-Epoch=9")).status == 403
    hub.routes.url_lifetime_s = -1
    expired = ask(link())
    assert (expired.status, b"Request has expired" in expired.body) == (403, True)
    hub.routes.url_lifetime_s = 60
    held = link()
    hub.expire_urls()
    assert (ask(held).status, ask(link()).status) == (403, 200)


def test_a_token_that_reaches_the_cdn_is_counted(hub: LoopbackHub, link: Link) -> None:
    ask(link())
    assert hub.cdn_saw_token == 0
    ask(link(), Authorization="Bearer hf_leaked")
    assert hub.cdn_saw_token == 1


def test_the_log_tells_what_was_asked_and_sent(hub: LoopbackHub, link: Link) -> None:
    ask(link(), Range="bytes=0-99")
    head, get = hub.requests
    until = time.monotonic() + 5
    while get.bytes_sent < 100 and time.monotonic() < until:  # counted by the server's thread once the bytes are on their way
        time.sleep(0.005)
        head, get = hub.requests
    assert (head.method, head.port, head.kind, head.status, head.bytes_sent) == ("HEAD", "hub", "resolve", 302, 0)
    assert (get.method, get.port, get.kind, get.status, get.range, get.bytes_sent) == ("GET", "cdn", "cdn", 206, "bytes=0-99", 100)
    assert (hub.bytes_sent(), hub.bytes_sent("hub")) == (100, 0)
    hub.reset_counters()
    assert (hub.requests, hub.bytes_sent()) == ([], 0)


def test_one_connection_serves_many_requests(hub: LoopbackHub, resolve: Resolve) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(hub.endpoint.rpartition(":")[2]), timeout=5)
    connection.connect()
    ours = connection.sock.getsockname()
    for _ in range(3):
        connection.request("GET", f"/{REPO}/resolve/main/README.md")
        assert connection.getresponse().read() == README
    assert connection.sock.getsockname() == ours
    connection.close()


def test_down_refuses_and_cuts_and_up_serves_on_the_same_port(hub: LoopbackHub, link: Link, resolve: Resolve) -> None:
    hub.rate_limit_bytes_per_s = 200_000
    url, broken = link(), []

    def download() -> None:
        try:
            ask(url)
        except (OSError, http.client.HTTPException) as error:
            broken.append(error)

    thread = threading.Thread(target=download)
    thread.start()
    while not hub.bytes_sent("cdn"):
        time.sleep(0.005)
    hub.down()
    thread.join(5)
    assert len(broken) == 1
    with pytest.raises(ConnectionRefusedError):
        ask(resolve())
    hub.rate_limit_bytes_per_s = None
    hub.up()
    assert ask(link()).body == WEIGHTS


def test_the_speed_limit_holds_for_all_connections_together(hub: LoopbackHub, link: Link) -> None:
    hub.rate_limit_bytes_per_s = 2_000_000
    urls = [link(), link()]
    began = time.monotonic()
    threads = [threading.Thread(target=ask, args=(url,), kwargs={"Range": "bytes=0-499999"}) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.4 < time.monotonic() - began < 3


def test_close_ends_every_wait_and_leaves_no_thread() -> None:
    others = set(threading.enumerate())
    hub = LoopbackHub()
    hub.add_revision(REPO, {"README.md": README})
    hub.faults.add("resolve", "wait 60 s")
    failed: list[BaseException] = []

    def waiting() -> None:
        try:
            ask(f"{hub.endpoint}/{REPO}/resolve/main/README.md")
        except (OSError, http.client.HTTPException) as error:
            failed.append(error)

    thread = threading.Thread(target=waiting)
    thread.start()
    while not hub.requests:
        time.sleep(0.005)
    hub.close()
    thread.join(5)
    until = time.monotonic() + 5
    while (left := [one.name for one in set(threading.enumerate()) - others if one.name.startswith("hub-")]) and time.monotonic() < until:
        time.sleep(0.01)
    assert (len(failed), left) == (1, [])


def test_a_path_is_served_from_disk(hub: LoopbackHub, resolve: Resolve, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    hub.add_revision("org/disk", {"w.bin": tmp_path / "w.bin", "small.txt": tmp_path / "w.bin"}, lfs_threshold=2 * SIZE)
    assert ask(resolve("w.bin", repo="org/disk")).body == WEIGHTS
    hub.add_revision("org/disk", {"w.bin": tmp_path / "w.bin"}, lfs_threshold=SIZE)
    moved = ask(resolve("w.bin", repo="org/disk"))
    assert ask(moved.headers["Location"], Range="bytes=77-99").body == WEIGHTS[77:100]


FLAT = """
import socket, sys
from pathlib import Path
from urllib.parse import urlsplit
from steelyard.standins.hub import LoopbackHub
path = Path(sys.argv[1])
with path.open("wb") as file:
    file.truncate((4 << 30) + 10)
    file.seek(4 << 30)
    file.write(b"0123456789")
with LoopbackHub() as hub:
    hub.add_revision("org/big", {"w.pt": path}, sha256={"w.pt": "0" * 64})
    url = urlsplit(hub.endpoint)
    def get(url, extra=""):
        parts = urlsplit(url)
        connection = socket.create_connection((parts.hostname, parts.port))
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\\r\\nConnection: close\\r\\n{extra}\\r\\n".encode())
        buffer, count, last, first = bytearray(1 << 20), 0, b"", b""
        while got := connection.recv_into(buffer):
            first = first or bytes(buffer[:got])
            count, last = count + got, bytes(buffer[max(0, got - 10) : got])
        return first, count, last
    head = get(hub.endpoint + "/org/big/resolve/main/w.pt")[0].decode()
    location = next(line[10:] for line in head.splitlines() if line.startswith("Location: "))
    _, count, last = get(location, f"Range: bytes={7 << 29}-\\r\\n")
    assert count > (1 << 29) and last.endswith(b"9"), (count, last)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_stays_flat_for_a_file_of_more_than_4_gib(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FLAT, str(tmp_path / "w.pt")], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 60_000


def test_it_starts_as_a_process_that_prints_its_endpoint(tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/a.txt").write_bytes(README)
    process = subprocess.Popen([sys.executable, "-m", "steelyard.standins.hub", "--root", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        endpoint, commit = process.stdout.readline().strip(), process.stdout.readline().split()
        assert commit[1] == "org/name"
        assert ask(f"{endpoint}/org/name/resolve/{commit[0]}/a.txt").body == README
    finally:
        process.terminate()
        process.wait(5)
