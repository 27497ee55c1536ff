"""The body of one answer: bytes into the caller's buffer, with what can go wrong on the way mapped to the rows of the weather table."""

from __future__ import annotations

import fcntl
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steelyard.weather import CONDITION, LEAST_RATE_BYTES_PER_S, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from urllib3 import BaseHTTPResponse

RATE_WINDOW_S = 20.0


class Stream:
    """The body of one answer, from *at* to *end* of the file; raises trouble when it is cut, stalls or trickles.

    *ignored_range*: the server sends the whole file from its first byte, though a range of it was asked for.
    """

    def __init__(self, answer: BaseHTTPResponse, start: int, end: int, *, ignored_range: bool = False) -> None:
        self._answer = answer
        self._raw = _plain_body(answer)
        self.at = start
        self.end = end
        self.ignored_range = ignored_range
        self._direct: Callable[[memoryview], int] | None = None
        self._window = time.monotonic()
        self._in_window = 0

    def readinto(self, buffer: memoryview) -> int:
        """Put what has arrived into *buffer*, never beyond the end, and return how much; 0 only at the end. :raises Trouble:"""
        want = min(len(buffer), self.end - self.at)
        if want <= 0:
            return 0
        with troubles():
            if self._raw is not None:
                # Straight from the socket into the buffer: urllib3's own read makes a fresh object of every chunk.
                got = self._raw.fp.readinto1(buffer[:want])
            else:
                data = self._answer.read1(want)
                got = len(data)
                buffer[:got] = data
        if not got:
            raise self._cut()
        self._came(got, time.monotonic())
        return int(got)

    def fill(self, buffer: memoryview, moment_s: float) -> tuple[int, Trouble | None]:
        """How much came into *buffer*, never beyond the end: all of it, or what came in a moment; and what ended it.

        TLS hands out 16 KiB at a time; whatever is done for each of these is done 65,000 times a GiB, so that it is little.
        """
        if self._raw is None:
            try:
                return self.readinto(buffer), None
            except Trouble as trouble:
                return 0, trouble
        view = buffer[: self.end - self.at]
        filled, want, now = 0, len(view), time.monotonic()
        until, ended = now + moment_s, None
        try:
            with troubles():
                while filled < want and (not filled or now < until):
                    got = self._direct(view[filled:]) if self._direct is not None else self._first(view[filled:])
                    if not got:
                        raise self._cut(filled)
                    filled += got
                    now = time.monotonic()
            self._came(filled, now)
        except Trouble as trouble:
            ended = trouble
        return filled, ended

    def _first(self, view: memoryview) -> int:
        """Read by way of http.client's buffer until what came with the headers is out of it; then there is nothing between us and the socket."""
        got = int(self._raw.fp.readinto1(view))
        sock = getattr(getattr(self._answer, "connection", None), "sock", None)
        if got < len(view) and sock is not None:
            self._direct = sock.recv_into
        return got

    def _cut(self, more: int = 0) -> Trouble:
        return Trouble(CONDITION["cut"], detail=f"{self.end - self.at - more} bytes are missing")

    def _came(self, got: int, now: float) -> None:
        self.at += got
        self._in_window += got
        if now - self._window > RATE_WINDOW_S:
            if self._in_window < LEAST_RATE_BYTES_PER_S * RATE_WINDOW_S:
                raise Trouble(CONDITION["trickle"], detail=f"{self._in_window} bytes in {RATE_WINDOW_S:.0f} s")
            self._window, self._in_window = now, 0

    def waiting_bytes(self) -> int:
        """How much has arrived and is not read yet; 0 where the system does not tell."""
        count = bytearray(4)
        try:
            fcntl.ioctl(self._answer.fileno(), termios.FIONREAD, count)
        except (OSError, ValueError, AttributeError):
            return 0
        return int.from_bytes(count, sys.byteorder)

    def close(self) -> None:
        """Give the connection back when everything was read, else cut it: what is still under way is not wanted."""
        if self.at < self.end or self.ignored_range:
            self._answer.close()
            return
        if self._raw is not None:
            # http.client takes a new request only on a connection whose last answer is closed; the socket stays open.
            self._raw.close()
        self._answer.release_conn()


def _plain_body(answer: BaseHTTPResponse) -> Any:
    """The answer of http.client below, where its body is nothing but Content-Length bytes; None where it is chunked."""
    raw = getattr(answer, "_original_response", None)
    if raw is None or getattr(raw, "fp", None) is None or getattr(raw, "chunked", True) or "content-length" not in answer.headers:
        return None
    return raw if hasattr(raw.fp, "readinto1") else None


@contextmanager
def troubles() -> Iterator[None]:
    """Map what urllib3, http.client and the socket raise to a row of the table. The special come before the general."""
    import http.client
    import ssl

    import urllib3.exceptions as theirs

    try:
        yield
    except (theirs.SSLError, ssl.SSLError) as error:
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error) or "doesn't match" in str(error)
        raise Trouble(CONDITION["certificate" if untrusted else "tls"], detail=_reason(error)) from error
    except (theirs.NewConnectionError, theirs.ConnectTimeoutError, theirs.NameResolutionError, theirs.ProxyError) as error:
        raise Trouble(CONDITION["connect"], detail=_reason(error)) from error
    except (theirs.ReadTimeoutError, TimeoutError) as error:
        raise Trouble(CONDITION["stall"]) from error
    except (theirs.IncompleteRead, http.client.IncompleteRead) as error:
        raise Trouble(CONDITION["cut"]) from error
    except (theirs.LocationParseError, theirs.URLSchemeUnknown) as error:
        raise Trouble(CONDITION["redirects"], detail="it names an address that is none") from error
    except (theirs.HTTPError, OSError) as error:
        raise Trouble(CONDITION["reset"], detail=_reason(error)) from error
    except (ValueError, http.client.HTTPException) as error:
        # A status line or header that is no HTTP.
        raise Trouble(CONDITION["reset"], detail="not HTTP") from error


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # urllib3 puts the whole URL, with its signature, into some messages.
    return text.split("(Caused by")[-1].split("url:")[0].split("?")[0].strip(" ()")[-160:]
