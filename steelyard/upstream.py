"""What lies between the commit that is held and the one upstream: commits, files that moved, and the words that changed in small files."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steelyard.errors import Gone, SteelyardError
from steelyard.fetch import fetch_small
from steelyard.hub import Listing
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.site import Site

log = logging.getLogger("steelyard")

MOST_DIFFS = 6
MOST_DIFF_BYTES = 64 * 1024
MOST_COMMITS = 200
"""As many are kept; a person reads the newest."""
_TOLD = re.compile(r"(^|/)readme(\.md)?$|\.(json|ya?ml|toml|txt|cfg|ini|py)$", re.IGNORECASE)


@dataclass(frozen=True)
class Commit:
    """One commit; *date* is ISO 8601. Title and authors are a stranger's words."""

    commit: str
    title: str
    authors: str
    date: str

    def as_json(self) -> dict[str, str]:
        return {"commit": self.commit, "title": self.title, "authors": self.authors, "date": self.date}


@dataclass(frozen=True)
class Between:
    """*commits* after the held one, newest first. *rewritten*: the held one is not among the ancestors of the new one; *why* says what is known of it.

    Where the Hub does not list its commits nothing is known: not rewritten, and no commits.
    """

    commits: tuple[Commit, ...] = ()
    rewritten: bool = False
    why: str = ""


def between(site: Site, locked: LockedModel, upstream: str) -> Between:
    """The commits from the held one to *upstream*: one request in the ordinary case, two where the held one is not among them."""
    try:
        found = list[Commit]()
        for one in history(site, locked.repo_id, upstream):
            if one.commit == locked.commit:
                return Between(tuple(found[:MOST_COMMITS]))
            found.append(one)
    except SteelyardError as error:
        log.warning("%s: the commits in between can't be listed: %s", locked.repo_id, error)
        return Between()
    told = f"{locked.commit[:8]}, which is held, is no longer in the history of {locked.revision}"
    try:
        older = {one.commit for one in history(site, locked.repo_id, locked.commit)}
    except Gone:
        return Between(rewritten=True, why=f"{told}, and the Hub no longer has it: your own copies are all there is of it")
    except SteelyardError:
        return Between(rewritten=True, why=told)
    if upstream in older:
        return Between(rewritten=True, why=f"{told}: it was set back to {upstream[:8]}, which is older; the Hub still has the held one")
    return Between(rewritten=True, why=f"{told}; the Hub still has it")


def history(site: Site, repo_id: str, revision: str) -> list[Commit]:
    """*revision* and its ancestors, newest first. :raises OtherSide:"""
    listed = site.hub.ask(repo_id, lambda: site.hub.api.list_repo_commits(repo_id, revision=revision))
    return [Commit(one.commit_id, str(one.title), ", ".join(map(str, one.authors)), one.created_at.isoformat()) for one in listed]


def moved(locked: LockedModel, listing: Listing, removed: Sequence[str]) -> dict[str, str]:
    """Held files that are gone under their name and are there, byte for byte, under another that we do not hold."""
    ours = {file.path for file in locked.files}
    by_etag = {file.etag: file.path for file in listing.files if file.path not in ours}
    etags = {file.path: file.etag for file in locked.files}
    return {path: by_etag[etags[path]] for path in removed if etags.get(path) in by_etag}


def words_changed(site: Site, locked: LockedModel, listing: Listing) -> dict[str, str]:
    """README, configs and other small text files that differ between the two commits, held or not: path -> unified diff. Best effort, bounded."""
    try:
        before = {file.path: file for file in site.hub.listing(locked.repo_id, locked.commit).files}
    except SteelyardError as error:
        log.info("%s: what changed in its README and configs is not known: %s", locked.repo_id, error)
        before = {file.path: file for file in locked.files}
    after = {file.path: file for file in listing.files}
    differ = [
        path
        for path in sorted(before.keys() & after.keys())
        if before[path].etag != after[path].etag and _small_text(before[path], after[path])
    ]
    found: dict[str, str] = {}
    for path in sorted(differ, key=lambda path: ("readme" not in path.lower(), path))[:MOST_DIFFS]:
        try:
            old = _text(site, locked.repo_id, locked.commit, before[path])
            new = _text(site, locked.repo_id, listing.commit, after[path])
        except (SteelyardError, UnicodeDecodeError) as error:
            log.info("%s: its change can't be shown: %s", path, error)
            continue
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "held", "upstream", lineterm="", n=1)
        found[path] = "\n".join(lines)
    return found


def _small_text(*files: LockedFile) -> bool:
    return all(_TOLD.search(file.path) and file.size_bytes <= MOST_DIFF_BYTES for file in files)


def _text(site: Site, repo_id: str, commit: str, file: LockedFile) -> str:
    """:raises OtherSide, Corrupt: when it can't be had as published. :raises UnicodeDecodeError:"""
    line = Line(site.hub.endpoint, repo_id, commit, timeout_s=site.config.hub.timeout, connections=1)
    try:
        return fetch_small([line], file, patience_s=min(site.config.hub.patience, 5.0))[0].decode("utf-8")
    finally:
        line.close()


def wanted_upstream(listing: Listing, patterns: Sequence[str] | None, locked: LockedModel) -> Mapping[str, LockedFile]:
    """The files upstream that the config asks for, or that are held."""
    import fnmatch

    ours = {file.path for file in locked.files}
    return {
        file.path: file
        for file in listing.files
        if patterns is None or file.path in ours or any(fnmatch.fnmatchcase(file.path, one) for one in patterns)
    }
