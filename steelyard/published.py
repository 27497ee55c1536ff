"""What a Hub publishes of a repo, where its page for a revision does not tell all of it: asked for in the other ways that the library knows.

Not every endpoint has the whole API: a mirror, a company's proxy or an older Hub may lack the tree, revisions by name, or everything but the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from steelyard.errors import BadAnswer, Gone
from steelyard.lock import LockedFile
from steelyard.pools import file_url

if TYPE_CHECKING:
    from steelyard.hub import Hub
    from steelyard.hub_page import Page

log = logging.getLogger("steelyard")

NO_DIGEST = "without a published digest nothing could be proven; use an endpoint that gives them"
PATHS_AT_ONCE = 500
HEADS_AT_ONCE = 8
MOST_HEADS = 2000
"""A repo of more files is not asked for one by one."""
NO_SUCH_ENDPOINT = frozenset({400, 405, 501})
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_commit(text: str) -> bool:
    return len(text) == 40 and all(letter in "0123456789abcdef" for letter in text)


def page_of(hub: Hub, repo_id: str, revision: str) -> Page:
    """The model's page at *revision*; of main also where the Hub knows no page of a revision. :raises OtherSide:"""
    try:
        return hub.page(repo_id, revision)
    except (Gone, BadAnswer) as error:
        if revision != "main" or not is_absent(error):
            raise
        try:
            return hub.page(repo_id, None)
        except (Gone, BadAnswer):
            raise error from None


def is_absent(error: BaseException) -> bool:
    """Whether the endpoint that was asked may be what is not there. Not where the Hub says what it lacks, and not where a web page answers."""
    if isinstance(error, Gone):
        return not error.facts.get("what")
    return isinstance(error, BadAnswer) and error.facts.get("status") in NO_SUCH_ENDPOINT


def without_page(hub: Hub, repo_id: str, revision: str, patterns: Sequence[str]) -> tuple[str, tuple[LockedFile, ...]] | None:
    """The commit of *revision* and the files that *patterns* name one by one, from where the files themselves are served; None where that tells nothing.

    It is all that hf_hub_download needs of a Hub.
    """
    if not patterns or any(set(one) & set("*?[") for one in patterns):
        return None
    try:
        commit = revision if is_commit(revision) else str(_head(hub, repo_id, revision, patterns[0]).commit_hash or "")
        return (commit, files_of(hub, repo_id, commit, patterns)) if is_commit(commit) else None
    except (Gone, BadAnswer) as error:
        log.info("%s: its files do not tell what they are either: %s", repo_id, error)
        return None


def files_of(hub: Hub, repo_id: str, commit: str, names: Sequence[str]) -> tuple[LockedFile, ...]:
    """The files called *names* (none: all that the tree has), each with a digest, in whatever way the Hub gives them.

    :raises BadAnswer: when it gives none for some. :raises OtherSide: when it can't be asked.
    """
    refused: Gone | BadAnswer | None = None
    for way in (_by_tree, _by_paths, _by_head):
        try:
            found = way(hub, repo_id, commit, names)
        except (Gone, BadAnswer) as error:
            refused = refused or error
            continue
        known = {file.path: file for file in found if file is not None}
        if names and all(name in known for name in names):
            return tuple(known[name] for name in names)
        if not names and len(known) == len(found):
            return tuple(known.values())
    if refused is not None and not names:
        raise refused
    raise BadAnswer(who=hub.endpoint, why=f"it publishes no digest for some files of {repo_id}", hint=NO_DIGEST) from refused


def _by_tree(hub: Hub, repo_id: str, commit: str, names: Sequence[str]) -> list[LockedFile | None]:
    tree = hub.ask(repo_id, lambda: list(hub.api.list_repo_tree(repo_id, revision=commit, recursive=True)))
    return [of_entry(one) for one in tree if hasattr(one, "size")]


def _by_paths(hub: Hub, repo_id: str, commit: str, names: Sequence[str]) -> list[LockedFile | None]:
    found: list[LockedFile | None] = []
    for at in range(0, len(names), PATHS_AT_ONCE):
        some = list(names[at : at + PATHS_AT_ONCE])
        told = hub.ask(repo_id, lambda some=some: list(hub.api.get_paths_info(repo_id, some, revision=commit)))  # type: ignore[misc]
        found += [of_entry(one) for one in told if hasattr(one, "size")]
    return found


def _by_head(hub: Hub, repo_id: str, commit: str, names: Sequence[str]) -> list[LockedFile | None]:
    """One request each: what the header of a file's own address says, as the library itself goes by it."""
    if len(names) > MOST_HEADS:
        return []

    def one(name: str) -> LockedFile | None:
        told = _head(hub, repo_id, commit, name)
        etag = str(told.etag or "")
        return locked_file(name, told.size, etag if len(etag) == 64 else "", etag)

    with ThreadPoolExecutor(HEADS_AT_ONCE) as executor:
        return list(executor.map(one, names))


def _head(hub: Hub, repo_id: str, revision: str, name: str) -> Any:
    url = file_url(hub.endpoint, repo_id, revision, name)
    ask: Callable[[], Any] = lambda: hub.api.get_hf_file_metadata(url=url, timeout=hub.settings.timeout)  # noqa: E731
    return hub.ask(repo_id, ask)


def of_entry(one: Any) -> LockedFile | None:
    return locked_file(one.path, one.lfs.size if one.lfs else one.size, one.lfs.sha256 if one.lfs else "", one.blob_id)


def locked_file(path: Any, size: Any, sha256: Any, blob_id: Any) -> LockedFile | None:
    """None where no digest of it is published that could be one. :raises BadAnswer: for a name or a size that is none."""
    if not isinstance(path, str) or not isinstance(size, int | None):
        raise BadAnswer(who="the Hub", why=f"it names a file {str(path)[:80]!r} of {str(size)[:80]!r} bytes", hint=NO_DIGEST)
    sha256, blob_id = str(sha256 or "").lower(), str(blob_id or "").lower()
    if size is None or size < 0 or not (_SHA256.fullmatch(sha256) if sha256 else is_commit(blob_id)):
        return None
    return LockedFile(path, size, sha256=sha256) if sha256 else LockedFile(path, size, git_sha1=blob_id)
