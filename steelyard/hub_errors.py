"""What a Hub answers when it does not give what was asked for, mapped to our errors in one place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Unreachable

NO_HUB = "is this a Hub endpoint ([hub] endpoint, HF_ENDPOINT)? A login page of the network (captive portal) answers like this too"
WEATHER_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""Answers that another try may change. 501 and 505 are not: the server will never do it."""


@contextmanager
def errors_of_hub(endpoint: str, repo_id: str) -> Iterator[None]:
    """Map what huggingface_hub and its HTTP library raise to our tree. Order matters: the special before the general."""
    import httpx2
    from huggingface_hub import errors as theirs

    try:
        yield
    except OtherSide:
        raise
    except theirs.RevisionNotFoundError as error:
        raise Gone(
            who=repo_id, why="it has no such revision", what="revision", hint="name a branch, a tag or a commit that it has"
        ) from error
    except theirs.HfHubHTTPError as error:
        raise status_error(endpoint, repo_id, error.response.status_code, dict(error.response.headers)) from error
    except theirs.OfflineModeIsEnabled as error:
        raise Unreachable(who=endpoint, why="HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE") from error
    except theirs.HFValidationError as error:
        raise BadAnswer(who=repo_id, why="the Hub takes no such repo_id", hint="correct repo_id in the config") from error
    except httpx2.TransportError as error:
        raise Unreachable(who=endpoint, why=short(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise BadAnswer(who=endpoint, why=short(error), hint=NO_HUB) from error
    except OSError as error:
        raise Unreachable(who=endpoint, why=short(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswer(who=endpoint, why="it is not what a Hub sends", hint=NO_HUB) from error


@contextmanager
def errors_of_page(endpoint: str, repo_id: str) -> Iterator[None]:
    """Map what our own request for the page of *repo_id*, and reading the answer, raise to our tree."""
    import urllib3.exceptions as theirs

    try:
        yield
    except OtherSide:
        raise
    except (theirs.LocationParseError, theirs.URLSchemeUnknown, theirs.DecodeError) as error:
        raise BadAnswer(who=endpoint, why=short(error), hint=NO_HUB) from error
    except (theirs.HTTPError, OSError) as error:
        raise Unreachable(who=endpoint, why=short(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswer(who=endpoint, why=f"what it says of {repo_id} is not what a Hub sends", hint=NO_HUB) from error


def status_error(who: str, repo_id: str, status: int, headers: dict[str, str]) -> OtherSide:
    """The error of an HTTP status of a Hub, for API and file requests alike."""
    lower = {key.lower(): value for key, value in headers.items()}
    code, said, told = lower.get("x-error-code", ""), f"HTTP {status}", lower.get("x-error-message", "").lower()
    if code == "GatedRepo":
        hint = f"open {who}/{repo_id} in a browser, accept the terms, then run: hf auth login"
        return AccessDenied(who=repo_id, why=f"it is gated: its owner wants the terms accepted first ({said})", hint=hint)
    if "disabled" in told and status in {401, 403}:
        return Gone(
            who=repo_id, why=f"the Hub has disabled it ({said})", hint="nothing held here is touched; look at its page for the reason"
        )
    if status == 401 and "expired" in told:
        return AccessDenied(
            who=repo_id, why=f"the token has expired ({said})", hint="make a new one, then set HF_TOKEN or run: hf auth login"
        )
    if status == 401 and "invalid credentials" in told:
        return AccessDenied(who=repo_id, why=f"the Hub does not know this token ({said})", hint="correct HF_TOKEN or run: hf auth login")
    if status == 401:
        hint = "check the name, and set HF_TOKEN or run: hf auth login"
        return AccessDenied(who=repo_id, why=f"no such repo, or it is private and no token that may read it was sent ({said})", hint=hint)
    if status == 403:
        return AccessDenied(who=repo_id, why=f"this token may not read it ({said})", hint=f"check the token's rights and {who}/{repo_id}")
    if status in {404, 410}:
        why = {"RevisionNotFound": "it has no such revision", "EntryNotFound": "it has no such file"}.get(code, "there is no such repo")
        what = {"RepoNotFound": "repo", "RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "")
        return Gone(who=repo_id, why=f"{why} ({said})", what=what, hint="check repo_id, revision and files in the config")
    if status in WEATHER_STATUS or status >= 520:
        return Unreachable(who=who, why=f"it answers {said}", retry_after_s=retry_after(lower))
    return BadAnswer(who=who, why=f"it answers {said}", status=status, hint=NO_HUB)


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds that an answer asks us to wait: Retry-After as seconds or HTTP date, or the `t=` of a RateLimit header that has nothing left."""
    import email.utils
    import re

    if value := headers.get("retry-after", "").strip():
        if value.isdigit():
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError):
            return None
    limit = headers.get("ratelimit", "")
    left, reset = re.search(r"\b(?:r|remaining)=(\d+)", limit), re.search(r"\b(?:t|reset)=(\d+)", limit)
    return float(reset[1]) if reset and left and left[1] == "0" else None


def short(error: Exception) -> str:
    """The innermost reason, in one line."""
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None and str(inner):
        seen = inner  # type: ignore[assignment]
    text = str(seen) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]
