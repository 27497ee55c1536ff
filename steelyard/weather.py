"""What to do when a transfer goes wrong: one table, read by every download.

A row says whether trying again can help, whether a fresh address is needed first, and whether it counts as bad weather (waited out for as long as
patience lasts since the last progress) or as a lie (an answer that contradicts what was asked for; five of them without progress end it).
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Unreachable
from steelyard.watch import Watch

Kind = Literal["weather", "expired", "lie", "gone"]


@dataclass(frozen=True)
class Reaction:
    kind: Kind
    fresh_address: bool = False
    what: str = ""


STATUS: dict[int, Reaction] = {
    401: Reaction("expired", fresh_address=True, what="the address expired or access was lost"),
    403: Reaction("expired", fresh_address=True, what="the signed address expired"),
    404: Reaction("gone", fresh_address=True, what="the address is gone"),
    408: Reaction("weather", what="request time-out"),
    410: Reaction("gone", fresh_address=True, what="the address is gone"),
    412: Reaction("lie", fresh_address=True, what="the file changed behind its address"),
    416: Reaction("lie", fresh_address=True, what="the range is outside the file it has"),
    421: Reaction("weather", fresh_address=True, what="misdirected"),
    425: Reaction("weather", what="too early"),
    429: Reaction("weather", what="too many requests"),
    500: Reaction("weather", what="server error"),
    502: Reaction("weather", what="bad gateway"),
    503: Reaction("weather", what="unavailable"),
    504: Reaction("weather", what="gateway time-out"),
}
CONDITION: dict[str, Reaction] = {
    "connect": Reaction("weather", fresh_address=True, what="no connection (refused, DNS, unreachable)"),
    "tls": Reaction("weather", fresh_address=True, what="TLS failed"),
    "certificate": Reaction("lie", fresh_address=True, what="its TLS certificate is not to be trusted"),
    "reset": Reaction("weather", what="the connection was reset"),
    "cut": Reaction("weather", what="the answer ended early"),
    "stall": Reaction("weather", what="silence"),
    "trickle": Reaction("weather", what="slower than the least rate"),
    "ignores-range": Reaction("lie", fresh_address=True, what="it ignores Range"),
    "wrong-range": Reaction("lie", fresh_address=True, what="another range than asked for"),
    "wrong-total": Reaction("lie", fresh_address=True, what="another size than published"),
    "changed": Reaction("lie", fresh_address=True, what="the ETag changed"),
    "encoded": Reaction("lie", fresh_address=True, what="it is compressed though we asked for plain bytes"),
    "page": Reaction("lie", fresh_address=True, what="a web page instead of the file (captive portal?)"),
    "redirects": Reaction("lie", fresh_address=True, what="redirects in a circle"),
}


def reaction_to(status: int) -> Reaction:
    """The row for an HTTP status; an unlisted 5xx is weather, any other surprise is a lie."""
    if status in STATUS:
        return STATUS[status]
    return Reaction("weather", what=f"HTTP {status}") if status >= 500 else Reaction("lie", fresh_address=True, what=f"HTTP {status}")


class Trouble(Exception):
    """One try went wrong; never leaves the download. *address* numbers the address it happened at, 0 when there was none yet."""

    def __init__(self, reaction: Reaction, *, retry_after_s: float | None = None, status: int = 0, detail: str = "") -> None:
        self.reaction = reaction
        self.retry_after_s = retry_after_s
        self.status = status
        self.address = 0
        self.endured = False
        """Waited out for as long as patience lasts: beginning again at once is of no use."""
        super().__init__(f"{reaction.what}{f' (HTTP {status})' if status else ''}{f': {detail}' if detail else ''}")


def as_error(trouble: Trouble, who: str, repo_id: str) -> OtherSide:
    """What a trouble that outlasted all patience is to the user."""
    kind = trouble.reaction.kind
    if kind == "weather":
        asked_s = trouble.retry_after_s
        hint = f"it asks for a wait of {asked_s:.0f} s; run the same command again after that; what has arrived is kept" if asked_s else ""
        return Unreachable(who=who, why=str(trouble), retry_after_s=asked_s, endured=trouble.endured, hint=hint)
    if kind == "expired":
        return AccessDenied(who=repo_id, why=str(trouble), hint="set HF_TOKEN or run: hf auth login; the machine's clock may be wrong too")
    if kind == "gone":
        return Gone(who=repo_id, why=str(trouble), hint="the Hub names an address that is not there; try again later")
    hint = "a proxy or login page of the network may be in the way; nothing was kept under a final name"
    if trouble.reaction is CONDITION["certificate"]:
        hint = "where a proxy of your own signs, name its certificate in SSL_CERT_FILE; else do not trust this network"
    return BadAnswer(who=who, why=str(trouble), hint=hint)


LEAST_RATE_BYTES_PER_S = 1024
"""Slower than this is no progress: a line that drips for ever must come to an end too."""


@dataclass
class Patience:
    """How long trouble is endured: weather for *limit_s* since the last progress, lies of five addresses. Shared by the connections of one file."""

    limit_s: float
    cap_s: float = 60.0
    """The longest wait asked for by the other side that we sit out ourselves; a longer one is handed up (Prefect's retry)."""
    lies_allowed: int = 5
    connections: int = 1
    """How many share it; each of them must make the least rate."""
    retries: int = 0
    _lies: int = 0
    _last_lie: int = 0
    _trouble_since: float = 0.0
    _bytes: int = 0
    _last_progress: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def progress(self, count: int) -> None:
        """*count* bytes came that were not there before. A drip below the least rate does not count."""
        now = time.monotonic()
        with self._lock:
            self._bytes += count
            if self._bytes >= LEAST_RATE_BYTES_PER_S * self.connections * (now - self._last_progress):
                self._lies = self._last_lie = self._bytes = 0
                self._trouble_since = 0.0
                self._last_progress = now

    def endure(self, trouble: Trouble, watch: Watch) -> bool:
        """Wait as long as is right and return True, or return False when it is enough. :raises Stopped:"""
        with self._lock:
            wait_s = self._wait_s(trouble)
        if wait_s is None:
            return False
        watch.pause(wait_s)
        return True

    def _wait_s(self, trouble: Trouble) -> float | None:
        self.retries += 1
        self._trouble_since = self._trouble_since or time.monotonic()
        if trouble.reaction.kind != "weather":
            # One address that expires or lies is seen by every connection at once: that is one lie, not eight.
            if trouble.address == 0 or trouble.address > self._last_lie:
                self._lies += 1
                self._last_lie = max(self._last_lie, trouble.address)
            if self._lies >= self.lies_allowed:
                return None
        left_s = self.limit_s - (time.monotonic() - self._last_progress)
        if left_s <= 0:
            trouble.endured = True
            return None
        if trouble.retry_after_s is not None:
            return max(trouble.retry_after_s, 0.05) if trouble.retry_after_s <= self.cap_s else None
        # About as long as the trouble has lasted: next to nothing at first, for a line that drops every megabyte; doubling from there.
        lasted_s = time.monotonic() - self._trouble_since
        wait_s = min(10.0, max(0.05, lasted_s)) * random.uniform(0.5, 1.0)  # noqa: S311
        # The last one is cut to what patience is left, so that patience means what it says.
        return max(0.05, min(wait_s, left_s))
