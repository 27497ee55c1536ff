"""Does the Hub answer, does it take the token, and is this machine's clock right."""

from __future__ import annotations

import email.utils
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPMessage
from typing import IO

from steelyard.config import Config
from steelyard.doctor.row import row
from steelyard.report import Row

HUB_TIMEOUT_S = 10.0
MOST_CLOCK_ERROR_S = 300.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token must not follow a redirect to another host."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


def hub(config: Config) -> Iterator[Row]:
    from huggingface_hub import get_token

    endpoint, token = config.hub.effective_endpoint, get_token()
    name, model = next(iter(config.models.items()))
    try:
        status, date = _get(f"{endpoint}/api/models/{model.repo_id}/revision/{model.revision}", token)
    except (OSError, ValueError) as error:
        why = f"{endpoint} does not answer: {reason(error)}"
        yield row("hub", "failed", why, "check the network, and [hub] endpoint or HF_ENDPOINT")
        return
    if status < 400:
        yield row("hub", "ok", f"{endpoint} answers for {model.repo_id}")
    elif status in {401, 403, 404}:
        yield row(
            "hub",
            "failed",
            f"{endpoint} answers {status} for {model.repo_id} (models.{name})",
            "check repo_id and revision, and set HF_TOKEN where the repo is private or gated",
        )
    else:
        yield row("hub", "failed", f"{endpoint} answers {status}", "try again later")
    yield _token(endpoint, token)
    yield _clock(date)


def _token(endpoint: str, token: str | None) -> Row:
    if token is None:
        return row("hub token", "ok", "none is set; public repos need none")
    try:
        status, _ = _get(f"{endpoint}/api/whoami-v2", token)
    except (OSError, ValueError) as error:
        return row("hub token", "unknown", reason(error))
    if status in {401, 403}:
        return row(
            "hub token",
            "failed",
            f"the Hub refuses it ({status})",
            "set a valid HF_TOKEN, or run: hf auth login; a bad one is worse than none",
        )
    return row("hub token", "ok" if status < 400 else "unknown", "the Hub accepts it" if status < 400 else f"the Hub answers {status}")


def _get(url: str, token: str | None) -> tuple[int, datetime | None]:
    """Status and date of the answer. :raises OSError, ValueError: when there is none."""
    request = urllib.request.Request(url)  # noqa: S310 (the user's own setting)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=HUB_TIMEOUT_S) as answer:
            status, headers = int(answer.status), answer.headers
    except urllib.error.HTTPError as error:
        status, headers = error.code, error.headers
    try:
        return status, email.utils.parsedate_to_datetime(headers["date"])
    except (TypeError, ValueError):
        return status, None


def _clock(there: datetime | None) -> Row:
    if there is None:
        return row("clock", "unknown", "the Hub gave no date to compare with")
    off = abs((datetime.now(UTC) - there.astimezone(UTC)).total_seconds())
    why = f"{off:.0f} s from the Hub's"
    return row(
        "clock",
        "ok" if off <= MOST_CLOCK_ERROR_S else "failed",
        why,
        "set the clock (timedatectl set-ntp true): signed links and S3 refuse a wrong one",
    )


def reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error).splitlines()[0][:160]
