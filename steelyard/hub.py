"""What the Hub says: revision -> commit, files, sizes, digests, scan status. Its errors, mapped to ours in one place."""

from __future__ import annotations

import fnmatch
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from steelyard.config import HubConfig
from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Unreachable, UsageError
from steelyard.lock import LockedFile
from steelyard.names import check_names
from steelyard.published import files_of, is_absent, is_commit, of_sibling, page_of, without_page
from steelyard.units import http_url
from steelyard.watch import current_watch

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

NO_HUB = "is this a Hub endpoint ([hub] endpoint, HF_ENDPOINT)? A login page of the network (captive portal) answers like this too"
WEATHER_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""Answers that another try may change. 501 and 505 are not: the server will never do it."""


@dataclass(frozen=True)
class Listing:
    """A repo at one commit: what *revision* resolved to and every file in it."""

    repo_id: str
    """As the Hub calls it now; another name than asked for means it was renamed."""
    revision: str
    commit: str
    files: tuple[LockedFile, ...]
    scan: str = ""
    """Of the whole repo: safe, unsafe, queued; empty where the Hub says nothing."""
    flagged: tuple[tuple[str, str], ...] = ()
    """(path, level) of the files that the Hub's scan has something to say against."""
    license: str = ""

    def matching(self, patterns: Sequence[str] | None) -> tuple[LockedFile, ...]:
        """The files that *patterns* (fnmatch; None: all) allow, sorted by path.

        :raises Gone: when a pattern allows none. :raises UnsafeName: when a name that is allowed can't be a file below its root.
        """
        wanted = tuple(file for file in self.files if patterns is None or any(fnmatch.fnmatchcase(file.path, one) for one in patterns))
        # Only what is wanted must have a usable name: many a repo has README.md and readme.md.
        check_names((file.path for file in wanted), f"{self.repo_id}@{self.commit[:8]}")
        if not self.files:
            raise Gone(who=f"{self.repo_id}@{self.commit[:8]}", why="it has no files", hint="check repo_id and revision in the config")
        for pattern in patterns or ():
            if not any(fnmatch.fnmatchcase(file.path, pattern) for file in self.files):
                names = ", ".join(file.path for file in self.files[:5])
                raise Gone(
                    who=f"{self.repo_id}@{self.commit[:8]}",
                    why=f"has no file {pattern!r}",
                    hint=f"it has {names or 'no files'}; correct files in the config",
                )
        return wanted


class Hub:
    """One Hub endpoint, asked through huggingface_hub. The token is the library's own (HF_TOKEN or the stored login)."""

    def __init__(self, settings: HubConfig) -> None:
        self.settings = settings
        self.endpoint = settings.effective_endpoint
        self._api: HfApi | None = None
        self._last: dict[tuple[str, str], Listing] = {}

    @property
    def api(self) -> HfApi:
        """:raises UsageError: when HF_ENDPOINT is no address; only who asks the Hub is told."""
        if self._api is None:
            import os

            try:
                http_url(self.endpoint)
            except ValueError as error:
                raise UsageError(why=f"HF_ENDPOINT in the environment: {error}", hint="correct or unset HF_ENDPOINT") from error

            # The library freezes its settings when it is first imported; telemetry is not ours to send.
            os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
            from huggingface_hub import HfApi

            from steelyard.hub_client import use_bounded_client

            use_bounded_client(self.settings.timeout)
            self._api = HfApi(endpoint=self.endpoint, library_name="steelyard")
        return self._api

    def listing(self, repo_id: str, revision: str, patterns: Sequence[str] | None = None) -> Listing:
        """The commit and files of *revision*: one request in the ordinary case.

        Files that *patterns* name one by one can be had from a Hub without an API too; then the listing holds no others.
        :raises AccessDenied, Gone, Unreachable, BadAnswer, UnsafeName:
        """
        try:
            told = self._by_page(repo_id, revision)
        except (Gone, BadAnswer) as error:
            # A 404 without a word more is what a repo that is gone looks like too.
            absent = isinstance(error, BadAnswer) and is_absent(error)
            found = without_page(self, repo_id, revision, patterns or ()) if absent else None
            if found is None:
                raise
            told = Listing(repo_id, revision, *found)
        self._last[repo_id, told.commit] = told
        return told

    def _by_page(self, repo_id: str, revision: str) -> Listing:
        info = page_of(self, repo_id, revision)
        commit = str(info.sha or "")
        if not is_commit(commit):
            raise BadAnswer(who=self.endpoint, why=f"it resolved {repo_id}@{revision} to {commit[:80]!r}, which is no commit", hint=NO_HUB)
        siblings = info.siblings or ()
        files = [of_sibling(one) for one in siblings]
        if any(file is None for file in files) or not files:
            # A Hub that gives no digests with the model's page gives them with its tree, or in another way.
            files = list(files_of(self, repo_id, commit, [one.rfilename for one in siblings]))
        known = tuple(sorted((file for file in files if file is not None), key=lambda file: file.path))
        card = getattr(info, "card_data", None)
        word, flagged = _scan_summary(info)
        return Listing(str(info.id or repo_id), revision, commit, known, word, flagged, str(getattr(card, "license", "") or ""))

    def last_listing(self, repo_id: str, commit: str) -> Listing | None:
        """What listing() said of that commit in this process; None where nobody asked."""
        return self._last.get((repo_id, commit))

    def ask(self, repo_id: str, call: Callable[[], T], tries: int = 4) -> T:
        """Make one API call; weather is waited out, at most as long as [hub] patience says; everything else is raised as ours."""
        until = time.monotonic() + self.settings.patience
        for attempt in range(1, tries + 1):
            try:
                with errors_of_hub(self.endpoint, repo_id):
                    return call()
            except Unreachable as error:
                wait_s = error.retry_after_s if error.retry_after_s is not None else random.uniform(0.5, 1) * 0.5 * 2**attempt  # noqa: S311
                if attempt == tries or wait_s > 30 or time.monotonic() > until:
                    error.endured = True
                    raise
                current_watch().pause(wait_s)
        raise AssertionError("the last try returns or raises")


def _scan_summary(info: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What the Hub's scan says of the repo in one word (safe, unsafe, queued; empty when it says nothing), and what of which file."""
    status = getattr(info, "security_repo_status", None)
    if not isinstance(status, dict):
        return "", ()
    issues = [one if isinstance(one, dict) else {"path": one} for one in status.get("filesWithIssues") or ()]
    if issues:
        return "unsafe", tuple((str(one.get("path") or ""), str(one.get("level") or "unsafe")) for one in issues)
    return ("safe" if status.get("scansDone") else "queued"), ()


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
        raise Unreachable(who=endpoint, why=_short(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise BadAnswer(who=endpoint, why=_short(error), hint=NO_HUB) from error
    except OSError as error:
        raise Unreachable(who=endpoint, why=_short(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswer(who=endpoint, why="it is not what a Hub sends", hint=NO_HUB) from error


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


def _short(error: Exception) -> str:
    """The innermost reason, in one line."""
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None and str(inner):
        seen = inner  # type: ignore[assignment]
    text = str(seen) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]
