"""Connections to a Hub endpoint, and who we are there: proxies, certificates, user agent, token. For the page of a repo and for the bytes of its files.

The token is huggingface_hub's own business and is asked of it; but only where there can be one, because the library's client takes longer to load
than the Hub to answer.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from steelyard import __version__

if TYPE_CHECKING:
    from urllib3 import PoolManager

MAX_REDIRECTS = 8
MOVED = frozenset({301, 302, 303, 307, 308})
_TOLD_BY = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "COLAB_RELEASE_TAG")
"""Variables without which, and without a stored login, the library finds no token."""


def pool_to(endpoint: str, connections: int) -> PoolManager:
    """A pool for *connections* at once to *endpoint*, by the system's proxy where it names one. It retries nothing."""
    import urllib.request

    import urllib3

    options: dict[str, Any] = {"maxsize": connections + 2, "block": False, "retries": False, "ca_certs": _ca_bundle()}
    scheme, host = urlsplit(endpoint).scheme, urlsplit(endpoint).hostname or ""
    proxy = urllib.request.getproxies().get(scheme) if not urllib.request.proxy_bypass(host) else None
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def _ca_bundle() -> str | None:
    # The same variables that requests, curl and huggingface_hub's client heed; None is the system's store.
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None


def user_agent() -> str:
    import huggingface_hub

    return f"steelyard/{__version__}; hf_hub/{huggingface_hub.__version__}; python/{platform.python_version()}"


def authorization() -> str | None:
    """The header that huggingface_hub would send: of HF_TOKEN, or of its stored login."""
    if not any(os.environ.get(name) for name in _TOLD_BY) and not Path(_constants().HF_TOKEN_PATH).is_file():
        return None
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    secret = build_hf_headers(token=None).get("authorization")
    return str(secret) if secret else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask."""
    return bool(_constants().is_offline_mode())


def is_home(url: str, endpoint: str) -> bool:
    """Whether the endpoint's token may go to *url*: its own scheme, host and port, nothing less."""
    return urlsplit(url)[:2] == urlsplit(endpoint)[:2]


def redirected(url: str, location: str) -> str:
    """Where an answer of *url* sends us. :raises ValueError: when that is nowhere."""
    try:
        there = urljoin(url, location)
        parts = urlsplit(there)
        if parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port):
            return there
    except ValueError:
        pass
    raise ValueError("it names an address that is none")


def file_url(endpoint: str, repo_id: str, revision: str, path: str) -> str:
    """Where an endpoint serves a file, as hf_hub_url has it."""
    return f"{endpoint}/{repo_id}/resolve/{quote(revision, safe='')}/{quote(path)}"


def _constants() -> Any:
    # The library freezes its settings when it is first imported; telemetry is not ours to send.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants
