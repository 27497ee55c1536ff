"""Every sentence of the fault language, seen with plain HTTP."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import pytest
from asking import FILE, README, REPO, WEIGHTS, ask

from steelyard.standins import hub_faults
from steelyard.standins.hub import LoopbackHub

Link = Callable[[], str]
Resolve = Callable[..., str]
SIZE = len(WEIGHTS)


def received(url: str, **headers: str) -> tuple[bytes, str]:
    """The bytes of the body that came, and how the connection ended: "reset", "closed" or "whole"."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", f"{parts.path}?{parts.query}", headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    wanted, got = int(response.headers["Content-Length"]), bytearray()
    try:
        while chunk := response.read1(1 << 16):
            got += chunk
    except ConnectionResetError:
        return bytes(got), "reset"
    except http.client.IncompleteRead:
        return bytes(got), "closed"
    finally:
        connection.close()
    return bytes(got), "whole" if len(got) == wanted else "closed"


@pytest.mark.parametrize("status", [401, 403, 404, 408, 425, 429, 500, 502, 503, 504])
def test_a_status_is_answered_as_often_as_asked_and_then_no_more(hub: LoopbackHub, resolve: Resolve, status: int) -> None:
    fault = hub.faults.add("resolve", str(status), times=2, headers={"X-Error-Code": "Injected"})
    seen = [ask(resolve("README.md")) for _ in range(3)]
    assert [one.status for one in seen] == [status, status, 200]
    assert seen[0].headers["X-Error-Code"] == "Injected"
    assert fault.used == 2


def test_come_again_later_is_said_in_three_ways(hub: LoopbackHub) -> None:
    url = f"{hub.endpoint}/api/models/{REPO}"
    hub.faults.add("api", "429, retry after 7 s", times=1)
    hub.faults.add("api", "503, retry after 60 s as date", times=1)
    hub.faults.add("api", "429, rate limit resets in 9 s", times=1)
    seconds, date, limit = ask(url), ask(url), ask(url)
    assert (seconds.status, seconds.headers["Retry-After"]) == (429, "7")
    assert date.status == 503
    assert 50 < parsedate_to_datetime(date.headers["Retry-After"]).timestamp() - time.time() < 61
    assert (limit.headers["RateLimit"], limit.headers["Retry-After"]) == ('"api";r=0;t=9', None)


def test_faults_are_addressed_by_kind_and_path_and_method_and_may_wait_their_turn(hub: LoopbackHub, resolve: Resolve, link: Link) -> None:
    hub.faults.add("resolve", "500", path="*.pt", skip=1)
    assert [ask(resolve()).status, ask(resolve()).status, ask(resolve("README.md")).status] == [302, 500, 200]
    hub.faults.clear()
    hub.faults.add("cdn", "503", path=f"{REPO}/*", times=1)
    assert [ask(link()).status, ask(link()).status] == [503, 200]
    hub.faults.add("api", "502", path="*/tree/*")
    assert ask(f"{hub.endpoint}/api/models/{REPO}").status == 200
    assert ask(f"{hub.endpoint}/api/models/{REPO}/tree/main").status == 502
    hub.faults.add("resolve", "504", method="GET")
    assert (ask(resolve(), "HEAD").status, ask(resolve()).status) == (302, 504)


def test_a_closed_connection_has_no_header(hub: LoopbackHub, resolve: Resolve) -> None:
    hub.faults.add("resolve", "close")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(resolve())
    assert hub.requests[-1].status == 0


def test_a_reset_comes_after_exactly_the_bytes_it_names(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "reset@100KiB", times=1)
    assert received(link()) == (WEIGHTS[: 100 << 10], "reset")
    assert received(link()) == (WEIGHTS, "whole")
    assert hub.requests[1].bytes_sent == 100 << 10


def test_a_reset_does_not_count_where_the_body_is_shorter(hub: LoopbackHub, link: Link) -> None:
    fault = hub.faults.add("cdn", "reset after 1 KiB", times=1)
    assert received(link(), Range="bytes=0-1023") == (WEIGHTS[:1024], "whole")
    assert fault.used == 0


def test_a_cut_is_a_clean_close_before_the_end(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "cut after 1000 bytes")
    assert received(link()) == (WEIGHTS[:1000], "closed")


def test_a_stall_pauses_in_mid_body_and_goes_on(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "stall 0.3 s after 4 KiB")
    began = time.monotonic()
    assert received(link()) == (WEIGHTS, "whole")
    assert time.monotonic() - began >= 0.3


def test_a_wait_comes_before_any_header(hub: LoopbackHub) -> None:
    hub.faults.add("api", "wait 5 s")
    parts = urlsplit(hub.endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=0.1)
    connection.request("GET", f"/api/models/{REPO}")
    with pytest.raises(socket.timeout):
        connection.getresponse()
    connection.close()


def test_a_trickle_is_slow(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "trickle at 64 KiB/s")
    began = time.monotonic()
    assert received(link(), Range="bytes=0-19999")[0] == WEIGHTS[:20000]
    assert 0.2 < time.monotonic() - began < 2


def test_a_link_expires_at_once_or_in_mid_body_and_a_fresh_one_holds(hub: LoopbackHub, link: Link) -> None:
    held = link()
    hub.faults.add("cdn", "expire", times=1)
    assert [ask(held).status, ask(held).status, ask(link()).status] == [403, 403, 200]
    held = link()
    hub.faults.add("cdn", "expire after 64 KiB", times=1)
    assert received(held) == (WEIGHTS[: 64 << 10], "reset")
    assert [ask(held, Range="bytes=65536-").status, ask(link(), Range="bytes=65536-").status] == [403, 206]


def test_a_range_may_be_ignored(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "ignore range")
    seen = ask(link(), Range="bytes=100-199")
    assert (seen.status, seen.headers["Content-Range"], seen.body) == (200, None, WEIGHTS)


def test_a_range_may_be_labelled_wrongly(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "shift range by 8", times=1)
    seen = ask(link(), Range="bytes=100-199")
    assert (seen.headers["Content-Range"], seen.body) == (f"bytes 108-207/{SIZE}", WEIGHTS[100:200])
    hub.faults.add("cdn", "wrong total by -8", times=1)
    assert ask(link(), Range="bytes=100-199").headers["Content-Range"] == f"bytes 100-199/{SIZE - 8}"


def test_the_bytes_of_a_range_may_be_shifted_under_the_right_label(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "shift bytes by 8")
    seen = ask(link(), Range="bytes=100-199")
    assert (seen.headers["Content-Range"], seen.body) == (f"bytes 100-199/{SIZE}", WEIGHTS[108:208])
    assert ask(link(), Range="bytes=-4").body == bytes(4)


def test_a_flipped_byte_shows_only_where_it_lies_and_as_often_as_asked(hub: LoopbackHub, link: Link) -> None:
    fault = hub.faults.add("cdn", "flip byte 300000", times=1)
    assert ask(link(), Range="bytes=0-999").body == WEIGHTS[:1000]
    assert fault.used == 0
    bad = ask(link(), Range="bytes=299990-300009").body
    assert [index for index in range(20) if bad[index] != WEIGHTS[299990 + index]] == [10]
    assert ask(link()).body == WEIGHTS
    hub.faults.add("cdn", "flip byte 0")
    assert all(ask(link()).body[0] == WEIGHTS[0] ^ 0xFF for _ in range(3))


def test_other_bytes_of_the_same_size_are_the_same_in_every_range(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "other bytes")
    whole = ask(link()).body
    assert len(whole) == SIZE
    assert whole != WEIGHTS
    assert ask(link(), Range="bytes=70000-199999").body == whole[70000:200000]


def test_an_etag_may_change(hub: LoopbackHub, resolve: Resolve, link: Link) -> None:
    honest = ask(resolve(), "HEAD").headers["X-Linked-Etag"]
    hub.faults.add("resolve", "other etag")
    hub.faults.add("cdn", "other etag")
    assert ask(resolve(), "HEAD").headers["X-Linked-Etag"] not in (None, honest)
    assert ask(link(), "HEAD").headers["ETag"] not in (None, honest)


def test_a_length_may_be_claimed_wrongly(hub: LoopbackHub, resolve: Resolve, link: Link) -> None:
    hub.faults.add("cdn", "claim 10 bytes more", times=1)
    hub.faults.add("cdn", "claim 10 bytes less", times=1, skip=1)
    assert received(link()) == (WEIGHTS, "closed")
    assert received(link()) == (WEIGHTS[:-10], "whole")
    hub.faults.add("resolve", "claim 10 bytes more", times=1)
    assert ask(resolve(), "HEAD").headers["X-Linked-Size"] == str(SIZE + 10)


def test_a_file_may_come_packed_though_nobody_asked(hub: LoopbackHub, resolve: Resolve, link: Link) -> None:
    hub.faults.add("resolve", "gzip")
    hub.faults.add("cdn", "gzip")
    small, large = ask(resolve("README.md")), ask(link())
    assert (small.headers["Content-Encoding"], gzip.decompress(small.body)) == ("gzip", README)
    assert (large.headers["Content-Length"], gzip.decompress(large.body)) == (None, WEIGHTS)


def test_a_captive_portal_answers_for_everyone(hub: LoopbackHub, resolve: Resolve, link: Link) -> None:
    url = link()
    hub.faults.add("cdn", "html")
    hub.faults.add("resolve", "html")
    hub.faults.add("api", "html as application/json")
    for seen, kind in (
        (ask(url), "text/html"),
        (ask(resolve()), "text/html"),
        (ask(f"{hub.endpoint}/api/models/{REPO}"), "application/json"),
    ):
        assert (seen.status, seen.body[:15]) == (200, b"<!DOCTYPE html>")
        assert seen.headers["Content-Type"].startswith(kind)


def test_json_may_be_garbage_or_huge(hub: LoopbackHub) -> None:
    url = f"{hub.endpoint}/api/models/{REPO}"
    hub.faults.add("api", "garbage json", times=1)
    hub.faults.add("api", "huge json 3 MiB", times=1)
    with pytest.raises(ValueError):
        json.loads(ask(url).body)
    huge = ask(url).body
    assert len(huge) == 3 << 20
    assert json.loads(huge)["id"].startswith("xxxx")


def test_faults_of_the_way_add_up(hub: LoopbackHub, link: Link) -> None:
    hub.faults.add("cdn", "flip byte 5")
    hub.faults.add("cdn", "stall 0.05 s after 10")
    hub.faults.add("cdn", "cut after 20")
    body, end = received(link())
    assert (len(body), end, body[5], body[6]) == (20, "closed", 5 ^ 0xFF, 6)


@pytest.mark.parametrize("nonsense", ["", "explode", "reset after lunch", "reset after", "flip", "5030", "stall after 1 MiB"])
def test_nonsense_is_refused(hub: LoopbackHub, nonsense: str) -> None:
    with pytest.raises(ValueError, match=r"no fault reads|not a size"):
        hub.faults.add("cdn", nonsense)


def test_every_sentence_of_the_documentation_can_be_read() -> None:
    lines = [line[4:46].strip() for line in (hub_faults.__doc__ or "").splitlines() if line.startswith("    ")]
    sentences = [line for line in lines if line and not line.startswith("…")]
    assert len(sentences) > 20
    for sentence in sentences:
        for one in sentence.split(" | "):
            hub_faults.read("claim 10 bytes less" if one == "less" else one)


def test_the_glob_matches_the_file_with_and_without_its_repo(hub: LoopbackHub, resolve: Resolve) -> None:
    hub.faults.add("resolve", "500", path=FILE, times=1)
    hub.faults.add("resolve", "501", path=f"{REPO}/{FILE}", times=1)
    assert [ask(resolve()).status for _ in range(3)] == [500, 501, 302]
