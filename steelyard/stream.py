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
    from collections.abc import Iterator

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
            raise Trouble(CONDITION["cut"], detail=f"{self.end - self.at} bytes are missing")
        self.at += got
        self._in_window += got
        now = time.monotonic()
        if now - self._window > RATE_WINDOW_S:
            if self._in_window < LEAST_RATE_BYTES_PER_S * RATE_WINDOW_S:
                raise Trouble(CONDITION["trickle"], detail=f"{self._in_window} bytes in {RATE_WINDOW_S:.0f} s")
            self._window, self._in_window = now, 0
        return int(got)

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
