"""What to do when a transfer goes wrong: one table, read by every download.

A row says whether trying again can help, whether a fresh address is needed first, and whether it counts as bad weather (waited out for as long as
patience lasts since the last progress) or as a lie (an answer that contradicts what was asked for; five of them without progress end it).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Literal

from steelyard.watch import Watch

Kind = Literal["weather", "expired", "lie", "denied", "gone", "final"]


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
    """One try went wrong; never leaves the download."""

    def __init__(self, reaction: Reaction, *, retry_after_s: float | None = None, status: int = 0, detail: str = "") -> None:
        self.reaction = reaction
        self.retry_after_s = retry_after_s
        self.status = status
        super().__init__(f"{reaction.what}{f' (HTTP {status})' if status else ''}{f': {detail}' if detail else ''}")


@dataclass
class Patience:
    """How long trouble is endured: weather for *limit_s* since the last progress, lies five times. Shared by the connections of one file."""

    limit_s: float
    cap_s: float = 60.0
    """The longest wait asked for by the other side that we sit out ourselves; a longer one is handed up (Prefect's retry)."""
    lies_allowed: int = 5
    retries: int = 0
    _lies: int = 0
    _row: int = 0
    _last_progress: float = field(default_factory=time.monotonic)

    def progress(self) -> None:
        self._lies = self._row = 0
        self._last_progress = time.monotonic()

    def endure(self, trouble: Trouble, watch: Watch) -> bool:
        """Wait as long as is right and return True, or return False when it is enough. :raises Stopped:"""
        self.retries += 1
        self._row += 1
        if trouble.reaction.kind in {"lie", "expired", "gone"}:
            self._lies += 1
            if self._lies >= self.lies_allowed:
                return False
        wait_s = min(10.0, 0.25 * 2 ** min(self._row, 6)) * random.uniform(0.5, 1.0)  # noqa: S311
        if trouble.retry_after_s is not None:
            if trouble.retry_after_s > self.cap_s:
                return False
            wait_s = max(trouble.retry_after_s, 0.05)
        if time.monotonic() - self._last_progress + wait_s > max(self.limit_s, trouble.retry_after_s or 0):
            return False
        watch.pause(wait_s)
        return True
