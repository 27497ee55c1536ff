"""Plain HTTP without manners: one request, nothing followed, nothing retried."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
README = b"# A model\n"
REPO = "MVDream/MVDream"
FILE = "sd-v2.1-base-4view.pt"


@dataclass
class Seen:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def ask(url: str, method: str = "GET", **headers: str) -> Seen:
    """One request on a connection of its own, no redirect followed; header names with _ for -."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{parts.path}?{parts.query}".rstrip("?"), headers=named)
        response = connection.getresponse()
        return Seen(response.status, response.headers, response.read())
    finally:
        connection.close()
