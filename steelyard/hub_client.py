"""The HTTP client that huggingface_hub asks the Hub's API with: the library's own, with an end to every wait and a bound to every answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from steelyard.errors import BadAnswer

MOST_BYTES = 64 * 1024**2
"""An answer of the API; the listing of a quarter of a million files is that large."""
WHOLE_ANSWER_TIMEOUTS = 6
"""A whole answer may take so many times the longest silence."""


_lock = threading.Lock()
_timeout_s: float | None = None


def use_bounded_client(timeout_s: float) -> None:
    """Make huggingface_hub use it from now on, in this process. *timeout_s* is the longest silence; the library's own client waits for ever."""
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    class Bounded(httpx2.SyncByteStream):  # type: ignore[misc]
        """A body that comes to an end. Not a generator: closing it must reach the connection."""

        def __init__(self, body: Any, host: str) -> None:
            self._body, self._host = body, host
            self._until = time.monotonic() + WHOLE_ANSWER_TIMEOUTS * timeout_s

        def __iter__(self) -> Iterator[bytes]:
            seen = 0
            for chunk in self._body:
                seen += len(chunk)
                if seen > MOST_BYTES:
                    hint = "is this a Hub endpoint ([hub] endpoint, HF_ENDPOINT)?"
                    raise BadAnswer(who=self._host, why=f"an answer of more than {MOST_BYTES >> 20} MiB", hint=hint)
                if time.monotonic() > self._until:
                    raise httpx2.ReadTimeout("the answer drips")
                yield chunk

        def close(self) -> None:
            self._body.close()

    def impatient(request: Any) -> None:
        # Most calls of the library say "no time-out" by name, which goes before what the client itself has.
        asked = request.extensions.get("timeout") or {}
        ends = {kind: timeout_s if asked.get(kind) is None else asked[kind] for kind in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": ends}

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream, response.url.host)

    def client() -> Any:
        made = default_client_factory()
        made.timeout = timeout_s
        hooks = made.event_hooks
        made.event_hooks = {"request": [*hooks.get("request", []), impatient], "response": [*hooks.get("response", []), bound]}
        return made

    global _timeout_s
    with _lock:
        if _timeout_s != timeout_s:
            # Only when something changes: the library closes its client then, under whoever is using it in another thread.
            set_client_factory(client)
            _timeout_s = timeout_s
