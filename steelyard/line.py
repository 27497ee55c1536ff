"""The line to a file on the Hub: where its bytes are now, and a stream of any range of them that is what was asked for, or trouble by name."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from steelyard.errors import AccessDenied, Gone, Unreachable
from steelyard.hub_errors import retry_after, status_error
from steelyard.lock import LockedFile
from steelyard.pools import MAX_REDIRECTS, MOVED, authorization, file_url, is_home, pool_to, redirected, user_agent
from steelyard.stream import Stream, troubles
from steelyard.weather import CONDITION, Trouble, reaction_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import BaseHTTPResponse

NO_HEAD = frozenset({400, 403, 405, 501})
"""How an address that is for GET alone answers HEAD."""


@dataclass(frozen=True)
class Address:
    """Where the bytes of a file can be had now. *headers* carry the token only when it is the Hub's own host; *born* counts from 1."""

    url: str
    headers: dict[str, str]
    born: int
    xet: bool = False
    """The Hub keeps these bytes in Xet; an address that can't be had by plain HTTP may be had by its own client."""

    def __repr__(self) -> str:
        # The query is a signature and the headers may hold the token: neither belongs in a log.
        return f"Address({self.shown})"

    @property
    def shown(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


class Line:
    """A connection pool to one endpoint (the Hub or a mirror) for the files of one repo at one commit.

    Every redirect is followed by hand: the token goes to the endpoint's own host and nowhere else.
    """

    def __init__(
        self, endpoint: str, repo_id: str, commit: str, *, timeout_s: float, connections: int = 4, with_token: bool = True
    ) -> None:
        import urllib3

        self.endpoint, self.repo_id, self.commit = endpoint, repo_id, commit
        self._timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
        self._pool = pool_to(endpoint, connections)
        plain = {"user-agent": user_agent(), "accept-encoding": "identity"}
        self._plain = plain
        secret = authorization() if with_token else None
        self._own = {**plain, "authorization": secret} if secret else plain
        self._addresses: dict[str, Address] = {}
        self._born: dict[str, int] = {}
        self._etags: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()

    def url(self, path: str) -> str:
        return file_url(self.endpoint, self.repo_id, self.commit, path)

    def _is_home(self, url: str) -> bool:
        """Whether the token may go there: the endpoint's own scheme, host and port, nothing less."""
        return is_home(url, self.endpoint)

    # --- where

    def address(self, file: LockedFile, stale: Address | None = None) -> Address:
        """The address of *file*: the known one, or a fresh one when there is none or *stale* is the known one.

        :raises AccessDenied, Gone: when the Hub itself says so. :raises Trouble:
        """
        with self._lock:
            known = self._addresses.get(file.path)
            if known is not None and (stale is None or known.born > stale.born):
                return known
            # Numbers are never given twice: what was seen at one address says nothing of the next.
            self._born[file.path] = self._born.get(file.path, 0) + 1
            fresh = self._resolve(file, self._born[file.path])
            self._addresses[file.path] = fresh
            return fresh

    def forget(self, file: LockedFile) -> None:
        """The next address of *file* is a fresh one."""
        with self._lock:
            self._addresses.pop(file.path, None)

    def offers_xet(self, file: LockedFile) -> bool:
        """Whether the last address of *file* said that the Hub keeps it in Xet."""
        known = self._addresses.get(file.path)
        return known is not None and known.xet

    def _resolve(self, file: LockedFile, born: int) -> Address:
        url, xet, linked, moved = self.url(file.path), False, False, False
        for _ in range(MAX_REDIRECTS):
            if not self._is_home(url):
                return Address(url, self._plain, born, xet)
            with troubles():
                answer = self._pool.request("HEAD", url, headers=self._own, redirect=False, timeout=self._timeout)
            xet = xet or "x-xet-hash" in answer.headers
            etag = _etag(answer.headers.get("x-linked-etag", ""))
            if etag and etag != file.etag:
                raise Trouble(CONDITION["changed"], detail=f"the Hub now calls it {etag[:16]}…")
            if answer.status in MOVED:
                url, linked, moved = _redirected(url, answer.headers.get("location", "")), linked or bool(etag), True
                continue
            # Signed for GET, an object's own address may well refuse HEAD: then the GET says what it is worth.
            no_head = moved and answer.status in NO_HEAD and "x-error-code" not in answer.headers
            if not (linked or no_head) or answer.status == 429 or (answer.status >= 500 and not no_head):
                self._refuse(answer.status, dict(answer.headers))
            return Address(url, self._own, born, xet)
        raise Trouble(CONDITION["redirects"])

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        """What the Hub itself (not a CDN) says of a file; its word on access and existence is final."""
        if status < 300:
            return
        error = status_error(self.endpoint, self.repo_id, status, headers)
        if isinstance(error, AccessDenied | Gone):
            raise error
        raise Trouble(reaction_to(status), status=status, retry_after_s=error.retry_after_s if isinstance(error, Unreachable) else None)

    # --- what

    @contextmanager
    def stream(self, file: LockedFile, start: int, end: int, address: Address) -> Iterator[Stream]:
        """Bytes *start* to *end* of *file* as a checked stream; the whole file from its first byte where the server ignores Range.

        :raises Trouble: with the address it happened at.
        """
        whole = start == 0 and end == file.size_bytes
        headers = dict(address.headers)
        if not whole:
            headers["range"] = f"bytes={start}-{end - 1}"
            if known := self._etags.get((file.path, address.born)):
                headers["if-range"] = f'"{known}"'
        try:
            answer = self._followed(address.url, headers)
            try:
                stream = self._check(answer, file, start, end, whole=whole, address=address)
            except BaseException:
                answer.close()
                raise
            try:
                yield stream
            finally:
                stream.close()
        except Trouble as trouble:
            trouble.address = address.born
            raise

    def _followed(self, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """The answer where redirects end: an address may lead on (http to https, one CDN to another). Whatever follows is sent no token."""
        for _ in range(MAX_REDIRECTS):
            answer = self._get(url, headers)
            if answer.status not in MOVED:
                return answer
            answer.close()
            url = _redirected(url, answer.headers.get("location", ""))
            headers = {key: value for key, value in headers.items() if key != "authorization"}
        raise Trouble(CONDITION["redirects"])

    def _get(self, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        with troubles():
            return self._pool.request(
                "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False, timeout=self._timeout
            )

    def _check(self, answer: BaseHTTPResponse, file: LockedFile, start: int, end: int, *, whole: bool, address: Address | None) -> Stream:
        """The body, when the answer's head says that it is what was asked for. :raises Trouble:"""
        status, headers = answer.status, answer.headers
        if status not in {200, 206}:
            asked_wait_s = retry_after({key.lower(): value for key, value in headers.items()})
            raise Trouble(reaction_to(status), status=status, retry_after_s=asked_wait_s)
        if headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise Trouble(CONDITION["encoded"])
        if address is not None:
            self._check_etag(headers.get("etag", ""), file, address)
        length = headers.get("content-length")
        if status == 200:
            page = "html" in headers.get("content-type", "") and not file.path.endswith((".html", ".htm"))
            if length == str(file.size_bytes) or (length is None and not page):
                return Stream(answer, 0, file.size_bytes, ignored_range=not whole)
            raise Trouble(CONDITION["page" if page else "wrong-total"], detail=f"{length} bytes where {file.size_bytes} are published")
        unit, _, rest = headers.get("content-range", "").partition(" ")
        span, _, total = rest.partition("/")
        first, _, last = span.partition("-")
        if unit != "bytes" or not (first.isdigit() and last.isdigit()):
            raise Trouble(CONDITION["wrong-range"], detail="no Content-Range")
        if total not in {"*", str(file.size_bytes)}:
            raise Trouble(CONDITION["wrong-total"], detail=f"{total} bytes where {file.size_bytes} are published")
        if int(first) != start or int(last) != end - 1:
            raise Trouble(CONDITION["wrong-range"], detail=f"{span} where {start}-{end - 1} was asked for")
        if length is not None and length != str(end - start):
            raise Trouble(CONDITION["wrong-range"], detail=f"Content-Length {length} where {end - start} was asked for")
        return Stream(answer, start, end)

    def _check_etag(self, value: str, file: LockedFile, address: Address) -> None:
        """One address is one object: its ETag, whatever it is made of, must stay what it was (RFC 9110, 13.1.5)."""
        if not value or value.startswith("W/"):
            return
        known = self._etags.setdefault((file.path, address.born), _etag(value))
        if known != _etag(value):
            raise Trouble(CONDITION["changed"])

    def small(self, file: LockedFile) -> bytes:
        """The whole of a small file in one request (and one more where it lies on a CDN); its size is checked, its bytes are not.

        :raises AccessDenied, Gone: :raises Trouble:
        """
        url = self.url(file.path)
        content = memoryview(bytearray(file.size_bytes))
        for _ in range(MAX_REDIRECTS):
            own = self._is_home(url)
            answer = self._get(url, self._own if own else self._plain)
            if answer.status in MOVED:
                answer.drain_conn()
                answer.release_conn()
                url = _redirected(url, answer.headers.get("location", ""))
                continue
            try:
                if own:
                    self._refuse(answer.status, dict(answer.headers))
                stream = self._check(answer, file, 0, file.size_bytes, whole=True, address=None)
            except BaseException:
                answer.close()
                raise
            try:
                while stream.at < stream.end:
                    stream.readinto(content[stream.at :])
            finally:
                stream.close()
            return bytes(content)
        raise Trouble(CONDITION["redirects"])

    def close(self) -> None:
        self._pool.clear()


def _redirected(url: str, location: str) -> str:
    """Where an answer sends us. :raises Trouble: when that is nowhere."""
    try:
        return redirected(url, location)
    except ValueError as error:
        raise Trouble(CONDITION["redirects"], detail=str(error)) from error


def _etag(value: str) -> str:
    return value.removeprefix("W/").strip('"')
