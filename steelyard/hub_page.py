"""A repo's page in the Hub's API, as `HfApi.model_info` asks for it: one request, with an end to every wait and a bound to the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from steelyard.errors import BadAnswer, Unreachable
from steelyard.hub_client import MOST_BYTES, WHOLE_ANSWER_TIMEOUTS
from steelyard.hub_errors import NO_HUB, status_error
from steelyard.lock import LockedFile
from steelyard.pools import MAX_REDIRECTS, MOVED, authorization, is_home, is_offline, pool_to, redirected, user_agent
from steelyard.published import locked_file

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Page:
    """What the page of a repo at a revision tells."""

    repo_id: str
    commit: str
    names: tuple[str, ...]
    files: tuple[LockedFile | None, ...]
    """In the order of *names*; None where the page gives no digest."""
    license: str = ""
    scan: object = None
    """`securityRepoStatus` as it came."""


def page_at(endpoint: str, repo_id: str, revision: str | None, timeout_s: float) -> Page:
    """The page of *repo_id* at *revision* (None: without naming one). *timeout_s* is the longest silence.

    :raises OtherSide: when the Hub says no. What else its absence or its answer raises is for hub_errors.errors_of_page.
    """
    if is_offline():
        raise Unreachable(who=endpoint, why="HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    if any(part in repo_id for part in ("--", "..")) or len(repo_id) > 96 or repo_id.endswith((".git", "-", ".")):
        raise BadAnswer(who=repo_id, why="the Hub takes no such repo_id", hint="correct repo_id in the config")
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    told = orjson.loads(_answer(endpoint, repo_id, f"{endpoint}/api/models/{repo_id}{at}?securityStatus=true&blobs=true", timeout_s))
    siblings = told.get("siblings") or ()
    card = told.get("cardData") or {}
    return Page(
        repo_id=str(told.get("id") or repo_id),
        commit=str(told.get("sha") or ""),
        names=tuple(str(one["rfilename"]) for one in siblings),
        files=tuple(_of_sibling(one) for one in siblings),
        license=str(card.get("license") or "") if isinstance(card, Mapping) else "",
        scan=told.get("securityRepoStatus"),
    )


def _of_sibling(one: Mapping[str, Any]) -> LockedFile | None:
    lfs = one.get("lfs") or {}
    return locked_file(one["rfilename"], lfs.get("size", one.get("size")), lfs.get("sha256", ""), one.get("blobId"))


def _answer(endpoint: str, repo_id: str, url: str, timeout_s: float) -> bytes:
    import urllib3

    headers = {"user-agent": user_agent(), "accept-encoding": "gzip"}
    secret = authorization()
    timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
    with pool_to(endpoint, 1) as pool:
        for _ in range(MAX_REDIRECTS):
            own = {**headers, "authorization": secret} if secret and is_home(url, endpoint) else headers
            answer = pool.request("GET", url, headers=own, redirect=False, preload_content=False, timeout=timeout)
            try:
                if answer.status in MOVED:
                    url = redirected(url, answer.headers.get("location", ""))
                    continue
                if answer.status >= 300:
                    raise status_error(endpoint, repo_id, answer.status, dict(answer.headers))
                return _body(answer, endpoint, WHOLE_ANSWER_TIMEOUTS * timeout_s)
            finally:
                answer.close()
    raise BadAnswer(who=endpoint, why="it sends from one address to the next and never answers", hint=NO_HUB)


def _body(answer: BaseHTTPResponse, endpoint: str, within_s: float) -> bytes:
    until, seen = time.monotonic() + within_s, bytearray()
    while chunk := answer.read1(CHUNK_BYTES, decode_content=True):
        seen += chunk
        if len(seen) > MOST_BYTES:
            raise BadAnswer(who=endpoint, why=f"an answer of more than {MOST_BYTES >> 20} MiB", hint=NO_HUB)
        if time.monotonic() > until:
            raise TimeoutError("the answer drips")
    return bytes(seen)
