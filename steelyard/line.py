"""The line to a file on the Hub: where its bytes are now, and a stream of any range of them that is what was asked for, or trouble by name."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from steelyard.errors import AccessDenied, Gone, OtherSide, Unreachable
from steelyard.hub import retry_after, status_error
from steelyard.lock import LockedFile
from steelyard.weather import CONDITION, Trouble, reaction_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import BaseHTTPResponse

LEAST_RATE_BYTES_PER_S = 1024
RATE_WINDOW_S = 20.0
MAX_REDIRECTS = 8


@dataclass(frozen=True)
class Address:
    """Where the bytes of a file can be had now. *headers* carry the token only when it is the Hub's own host."""

    url: str
    headers: dict[str, str]
    born: int

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
        import urllib.request

        import urllib3
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.endpoint, self.repo_id, self.commit = endpoint, repo_id, commit
        self._timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
        options: dict[str, Any] = {"maxsize": connections + 2, "block": False, "retries": False, "ca_certs": _ca_bundle()}
        proxies = urllib.request.getproxies()
        scheme, host = urlsplit(endpoint).scheme, urlsplit(endpoint).hostname or ""
        proxy = proxies.get(scheme) if not urllib.request.proxy_bypass(host) else None
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        plain = {"user-agent": build_hf_headers(token=False, library_name="steelyard")["user-agent"], "accept-encoding": "identity"}
        self._plain = plain
        secret = build_hf_headers(token=None).get("authorization") if with_token else None
        self._own = {**plain, "authorization": secret} if secret else plain
        self._addresses: dict[str, Address] = {}
        self._lock = threading.Lock()

    def url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo_id, path, revision=self.commit, endpoint=self.endpoint)

    # --- where

    def address(self, file: LockedFile, stale: Address | None = None) -> Address:
        """The address of *file*: the known one, or a fresh one when there is none or *stale* is the known one.

        :raises AccessDenied, Gone: when the Hub itself says so. :raises Trouble:
        """
        with self._lock:
            known = self._addresses.get(file.path)
            if known is not None and (stale is None or known.born > stale.born):
                return known
            fresh = self._resolve(file, born=known.born + 1 if known else 0)
            self._addresses[file.path] = fresh
            return fresh

    def forget(self, file: LockedFile) -> None:
        """The next address of *file* is a fresh one."""
        with self._lock:
            self._addresses.pop(file.path, None)

    def _resolve(self, file: LockedFile, born: int) -> Address:
        url, home = self.url(file.path), urlsplit(self.endpoint).netloc
        for _ in range(MAX_REDIRECTS):
            own = urlsplit(url).netloc == home
            headers = self._own if own else self._plain
            if not own:
                return Address(url, headers, born)
            with _troubles():
                answer = self._pool.request("HEAD", url, headers=headers, redirect=False, timeout=self._timeout)
            if answer.status in {301, 302, 303, 307, 308}:
                url = urljoin(url, answer.headers.get("location", ""))
                continue
            self._refuse(answer.status, dict(answer.headers))
            etag = _etag(answer.headers.get("x-linked-etag") or answer.headers.get("etag", ""))
            if file.etag and etag and etag != file.etag:
                raise Trouble(CONDITION["changed"], detail=f"the Hub now calls it {etag[:16]}…")
            return Address(url, headers, born)
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
        """Bytes *start* to *end* of *file* as a checked stream. It begins at 0 instead when the server ignores Range (Stream.start says)."""
        whole = start == 0 and end == file.size_bytes
        headers = dict(address.headers) if whole else {**address.headers, "range": f"bytes={start}-{end - 1}"}
        with _troubles():
            answer = self._pool.request(
                "GET", address.url, headers=headers, redirect=False, preload_content=False, decode_content=False, timeout=self._timeout
            )
        finished = False
        try:
            at = self._check(answer, file, start, end, whole=whole)
            stream = Stream(answer, at, file.size_bytes if at != start or whole else end)
            yield stream
            finished = stream.at == stream.end
        finally:
            if finished:
                answer.release_conn()
            else:
                answer.close()

    def _check(self, answer: BaseHTTPResponse, file: LockedFile, start: int, end: int, *, whole: bool) -> int:
        status, headers = answer.status, answer.headers
        if status in {301, 302, 303, 307, 308}:
            raise Trouble(CONDITION["connect"], status=status)
        if status not in {200, 206}:
            raise Trouble(
                reaction_to(status), status=status, retry_after_s=retry_after({key.lower(): value for key, value in headers.items()})
            )
        if headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise Trouble(CONDITION["encoded"])
        length = headers.get("content-length")
        if status == 200:
            if length is not None and length.isdigit() and int(length) == file.size_bytes:
                return 0
            page = "html" in headers.get("content-type", "") and not file.path.endswith((".html", ".htm"))
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
        return start if not whole else 0

    def small(self, file: LockedFile) -> bytes:
        """The whole of a small file in one request (and one more where it lies on a CDN); its size is checked, its bytes are not.

        :raises AccessDenied, Gone: :raises Trouble:
        """
        url, home = self.url(file.path), urlsplit(self.endpoint).netloc
        for _ in range(MAX_REDIRECTS):
            own = urlsplit(url).netloc == home
            with _troubles():
                answer = self._pool.request(
                    "GET",
                    url,
                    headers=self._own if own else self._plain,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=self._timeout,
                )
            try:
                if answer.status in {301, 302, 303, 307, 308}:
                    answer.drain_conn()
                    url = urljoin(url, answer.headers.get("location", ""))
                    continue
                if own:
                    self._refuse(answer.status, dict(answer.headers))
                self._check(answer, file, 0, file.size_bytes, whole=True)
                stream = Stream(answer, 0, file.size_bytes)
                parts = []
                while stream.at < stream.end:
                    parts.append(stream.next())
                answer.release_conn()
                return b"".join(parts)
            finally:
                answer.close()
        raise Trouble(CONDITION["redirects"])

    def close(self) -> None:
        self._pool.clear()


class Stream:
    """The body of one answer, from *at* to *end*; raises trouble when it is cut, stalls or trickles."""

    def __init__(self, answer: BaseHTTPResponse, start: int, end: int) -> None:
        self._answer = answer
        self.start = self.at = start
        self.end = end
        self._window = time.monotonic()
        self._in_window = 0

    def next(self, most: int = 1 << 20) -> bytes:
        """What has arrived, at most *most* bytes and never beyond the end; b"" at the end. :raises Trouble:"""
        want = min(most, self.end - self.at)
        if want == 0:
            return b""
        with _troubles():
            data = self._answer.read1(want)
        if not data:
            raise Trouble(CONDITION["cut"], detail=f"{self.end - self.at} bytes are missing")
        self.at += len(data)
        self._in_window += len(data)
        now = time.monotonic()
        if now - self._window > RATE_WINDOW_S:
            if self._in_window < LEAST_RATE_BYTES_PER_S * RATE_WINDOW_S:
                raise Trouble(CONDITION["trickle"], detail=f"{self._in_window} bytes in {RATE_WINDOW_S:.0f} s")
            self._window, self._in_window = now, 0
        return data


@contextmanager
def _troubles() -> Iterator[None]:
    """Map what urllib3 and the socket raise to a row of the table. The special come before the general."""
    import urllib3.exceptions as theirs

    try:
        yield
    except theirs.SSLError as error:
        raise Trouble(CONDITION["tls"], detail=_reason(error)) from error
    except (theirs.NewConnectionError, theirs.ConnectTimeoutError, theirs.NameResolutionError, theirs.ProxyError) as error:
        raise Trouble(CONDITION["connect"], detail=_reason(error)) from error
    except theirs.ReadTimeoutError as error:
        raise Trouble(CONDITION["stall"]) from error
    except theirs.IncompleteRead as error:
        raise Trouble(CONDITION["cut"]) from error
    except (theirs.HTTPError, OSError) as error:
        raise Trouble(CONDITION["reset"], detail=_reason(error)) from error
    except ValueError as error:
        # A status line or header that is no HTTP.
        raise Trouble(CONDITION["reset"], detail="not HTTP") from error


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # urllib3 puts the whole URL, with its signature, into some messages.
    return text.split("(Caused by")[-1].split("url:")[0].strip(" ()")[-160:]


def _etag(value: str) -> str:
    return value.removeprefix("W/").strip('"')


def _ca_bundle() -> str | None:
    import os

    # The same variables that requests, curl and huggingface_hub's client heed; None is the system's store.
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None


def as_error(trouble: Trouble, who: str, repo_id: str) -> OtherSide:
    """What a trouble that outlasted all patience is to the user."""
    from steelyard.errors import BadAnswer

    kind = trouble.reaction.kind
    if kind == "weather":
        return Unreachable(who=who, why=str(trouble), retry_after_s=trouble.retry_after_s, endured=True)
    if kind == "expired":
        return AccessDenied(who=repo_id, why=str(trouble), hint="set HF_TOKEN or run: hf auth login; the machine's clock may be wrong too")
    if kind == "gone":
        return Gone(who=repo_id, why=str(trouble), hint="the Hub names an address that is not there; try again later")
    return BadAnswer(
        who=who, why=str(trouble), hint="a proxy or login page of the network may be in the way; nothing was kept under a final name"
    )
