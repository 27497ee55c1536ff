"""What the Hub says: revision -> commit, files, sizes, digests, scan status."""

from __future__ import annotations

import fnmatch
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from steelyard.config import HubConfig
from steelyard.errors import BadAnswer, Gone, Unreachable, UsageError
from steelyard.hub_errors import NO_HUB, errors_of_hub, errors_of_page
from steelyard.hub_page import Page, page_at
from steelyard.lock import LockedFile
from steelyard.names import check_names
from steelyard.published import files_of, is_absent, is_commit, page_of, without_page
from steelyard.units import http_url
from steelyard.watch import current_watch

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Errors = Callable[[str, str], AbstractContextManager[None]]
"""Of an endpoint and a repo: what maps the errors of a request to ours."""


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
        """The library's own client, for all but a repo's page. It takes as long to load as the Hub to answer. :raises UsageError:"""
        if self._api is None:
            import os

            self.check_endpoint()
            # The library freezes its settings when it is first imported; telemetry is not ours to send.
            os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
            from huggingface_hub import HfApi

            from steelyard.hub_client import use_bounded_client

            use_bounded_client(self.settings.timeout)
            self._api = HfApi(endpoint=self.endpoint, library_name="steelyard")
        return self._api

    def check_endpoint(self) -> None:
        """:raises UsageError: when HF_ENDPOINT is no address; only who asks the Hub is told."""
        try:
            http_url(self.endpoint)
        except ValueError as error:
            raise UsageError(why=f"HF_ENDPOINT in the environment: {error}", hint="correct or unset HF_ENDPOINT") from error

    def page(self, repo_id: str, revision: str | None) -> Page:
        """What the repo's page at *revision* (None: without naming one) tells. One request, by our own client. :raises OtherSide, UsageError:"""
        self.check_endpoint()
        return self.ask(repo_id, lambda: page_at(self.endpoint, repo_id, revision, self.settings.timeout), errors=errors_of_page)

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
        page = page_of(self, repo_id, revision)
        commit = page.commit
        if not is_commit(commit):
            raise BadAnswer(who=self.endpoint, why=f"it resolved {repo_id}@{revision} to {commit[:80]!r}, which is no commit", hint=NO_HUB)
        files = page.files
        if any(file is None for file in files) or not files:
            # A Hub that gives no digests with the model's page gives them with its tree, or in another way.
            files = files_of(self, repo_id, commit, page.names)
        known = tuple(sorted((file for file in files if file is not None), key=lambda file: file.path))
        word, flagged = _scan_summary(page.scan)
        return Listing(page.repo_id or repo_id, revision, commit, known, word, flagged, page.license)

    def last_listing(self, repo_id: str, commit: str) -> Listing | None:
        """What listing() said of that commit in this process; None where nobody asked."""
        return self._last.get((repo_id, commit))

    def ask(self, repo_id: str, call: Callable[[], T], tries: int = 4, *, errors: Errors = errors_of_hub) -> T:
        """Make one API call, whose failures *errors* knows. Weather is waited out, at most as long as [hub] patience says; the rest is raised as ours."""
        until = time.monotonic() + self.settings.patience
        for attempt in range(1, tries + 1):
            try:
                with errors(self.endpoint, repo_id):
                    return call()
            except Unreachable as error:
                wait_s = error.retry_after_s if error.retry_after_s is not None else random.uniform(0.5, 1) * 0.5 * 2**attempt  # noqa: S311
                if attempt == tries or wait_s > 30 or time.monotonic() > until:
                    error.endured = True
                    raise
                current_watch().pause(wait_s)
        raise AssertionError("the last try returns or raises")


def _scan_summary(status: object) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What the Hub's scan (`securityRepoStatus`) says of the repo in one word (safe, unsafe, queued; empty when it says nothing), and of which file."""
    if not isinstance(status, dict):
        return "", ()
    issues = [one if isinstance(one, dict) else {"path": one} for one in status.get("filesWithIssues") or ()]
    if issues:
        return "unsafe", tuple((str(one.get("path") or ""), str(one.get("level") or "unsafe")) for one in issues)
    return ("safe" if status.get("scansDone") else "queued"), ()
