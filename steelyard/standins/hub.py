"""A stand-in for the Hugging Face Hub on the loopback: the real protocol, from bytes and files given to it.

    with LoopbackHub() as hub:
        commit = hub.add_revision("MVDream/MVDream", {"sd-v2.1-base-4view.pt": Path(…), "README.md": b"…"}, title="Add weights")
        HfApi(endpoint=hub.endpoint).model_info("MVDream/MVDream")
        hub.faults.add("cdn", "reset after 1 MiB", times=3)

Two ports: the Hub's, and the CDN's that files in LFS are redirected to with a signed link. Nothing leaves the loopback.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from steelyard.standins.hub_data import Commit, Content, HubFile, Repo, Scan, goes_to_lfs
from steelyard.standins.hub_faults import FaultBook
from steelyard.standins.hub_reply import Asked, Port, Reply
from steelyard.standins.hub_routes import Routes, Token
from steelyard.standins.hub_wire import Listener, Pace, Request

FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
"""Commits are an hour apart from here on unless dated: the same files in the same order give the same commit ids."""


class LoopbackHub:
    """The Hub. Threads are daemons; close() cuts every connection. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.faults = FaultBook()
        self.pace = Pace()
        self.closing = threading.Event()
        self.cdn_saw_token = 0
        """How often an Authorization header came to the CDN: credentials given to a stranger. Must stay 0."""
        self._routes = Routes()
        self._log: list[Request] = []
        self._log_lock = threading.Lock()
        self._commits_made = 0
        self._hub = Listener("hub", self)
        self._cdn = Listener("cdn", self)
        self.endpoint = self._routes.endpoint = f"http://127.0.0.1:{self._hub.port}"
        self.cdn_endpoint = self._routes.cdn_endpoint = f"http://127.0.0.1:{self._cdn.port}"

    # ---- what it holds

    def add_revision(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        *,
        title: str = "Upload files",
        branch: str = "main",
        author: str = "founder",
        date: datetime | None = None,
        tag: str | None = None,
        lfs_threshold: int | None = None,
        sha256: Mapping[str, str] | None = None,
    ) -> str:
        """Commit *files* on top of *branch* (of main, when there is no such branch) and return the commit, 40 hex digits.

        Paths not named stay, a path with None is removed. Files from *lfs_threshold* bytes on go to LFS; without it the Hub's own rule
        holds: weights by their suffix, and whatever has 10 MB. *sha256* spares the hashing of large files; it is not checked.
        """
        with self._routes.lock:
            self._routes.renamed.pop(repo_id, None)
            repo = self._routes.repos.setdefault(repo_id, Repo(repo_id))
            parent = repo.branches.get(branch) or repo.branches.get("main")
            held = dict(repo.commits[parent].files) if parent else {}
            commit = self._commit(repo, held, files, title, branch, author, date, lfs_threshold, sha256, parent)
            if tag:
                repo.tags[tag] = commit.commit_id
            return commit.commit_id

    def force_push(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        title: str = "Rewrite history",
        branch: str = "main",
        author: str = "founder",
        date: datetime | None = None,
        lfs_threshold: int | None = None,
        keep_old: bool = False,
    ) -> str:
        """Replace the whole history of *branch* by one commit of *files*; what no branch or tag leads to is gone, unless *keep_old*."""
        with self._routes.lock:
            repo = self.repo(repo_id)
            commit = self._commit(repo, {}, files, title, branch, author, date, lfs_threshold, None, None)
            if not keep_old:
                repo.forget_unreachable()
            return commit.commit_id

    def _commit(
        self,
        repo: Repo,
        held: dict[str, HubFile],
        files: Mapping[str, bytes | Path | None],
        title: str,
        branch: str,
        author: str,
        date: datetime | None,
        lfs_threshold: int | None,
        sha256: Mapping[str, str] | None,
        parent: str | None,
    ) -> Commit:
        for path, source in files.items():
            held.pop(path, None)
            if source is not None:
                content = Content(source, (sha256 or {}).get(path))
                held[path] = HubFile(path, content, goes_to_lfs(path, content.size_bytes, lfs_threshold))
        when = date or FIRST_DAY + timedelta(hours=self._commits_made)
        self._commits_made += 1
        return repo.commit(held, title=title, author=author, date=when, branch=branch, parent=parent)

    def repo(self, repo_id: str) -> Repo:
        """The repo, whose private, gated, disabled, readers, branches and tags may be set."""
        return self._routes.repos[repo_id]

    def delete_repo(self, repo_id: str) -> None:
        with self._routes.lock:
            del self._routes.repos[repo_id]

    def rename_repo(self, old: str, new: str) -> None:
        """The old name redirects (307) to the new one."""
        with self._routes.lock:
            repo = self._routes.repos.pop(old)
            repo.repo_id = new
            self._routes.repos[new] = repo
            self._routes.renamed[old] = new

    def set_scan(self, repo_id: str, path: str, status: str, imports: tuple[str, ...] = ()) -> None:
        """What the Hub's scanners say of a file: "safe" (the default), "unsafe", "suspicious", "queued"; *imports* as "module.name"."""
        self.repo(repo_id).scans[path] = Scan(status, imports)

    def add_token(self, token: str, user: str = "keeper", *, expired: bool = False) -> None:
        """Accept *token* as *user*'s; an expired one, like one never added, is refused everywhere, on public repos too."""
        self._routes.tokens[token] = Token(user, expired)

    def expire_urls(self) -> None:
        """Every signed link given out until now is refused from now on."""
        self._routes.expire_urls()

    @property
    def routes(self) -> Routes:
        """Settings of the protocol: url_lifetime_s, page_entries, page_expanded, offer_xet."""
        return self._routes

    @property
    def rate_limit_bytes_per_s(self) -> float | None:
        """All connections together send no faster; None is no limit."""
        return self.pace.bytes_per_s

    @rate_limit_bytes_per_s.setter
    def rate_limit_bytes_per_s(self, limit: float | None) -> None:
        self.pace.bytes_per_s = limit

    # ---- what was asked of it

    def answer(self, asked: Asked) -> tuple[Reply, Request]:
        """The reply with its faults, and its line in the log."""
        honest = self._routes.on_cdn(asked) if asked.port == "cdn" else self._routes.on_hub(asked)
        reply = self.faults.apply(asked, honest)
        if reply.expires:
            self.expire_urls()
        had_token = "authorization" in asked.headers
        status = 0 if reply.silent else reply.status
        line = Request(asked.method, asked.path, asked.range, status, 0, asked.port, asked.kind, had_token)
        with self._log_lock:
            self._log.append(line)
            self.cdn_saw_token += had_token and asked.port == "cdn"
        return reply, line

    @property
    def requests(self) -> list[Request]:
        """The log so far, in order of arrival; lines of running replies keep growing."""
        with self._log_lock:
            return list(self._log)

    def bytes_sent(self, port: Port | None = None) -> int:
        """Bytes of bodies sent since the last reset, running replies included; by both ports or one."""
        return sum(line.bytes_sent for line in self.requests if port in (None, line.port))

    def reset_counters(self) -> None:
        with self._log_lock:
            self._log.clear()
            self.cdn_saw_token = 0

    # ---- being there

    def down(self) -> None:
        """Refuse connections on both ports and cut those that are open."""
        self._hub.down()
        self._cdn.down()

    def up(self) -> None:
        """Listen again, on the same ports."""
        self._hub.up()
        self._cdn.up()

    def close(self) -> None:
        self.closing.set()
        self._hub.close()
        self._cdn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def add_folder(hub: LoopbackHub, root: Path) -> dict[str, str]:
    """Add every <org>/<name>/ below *root* as a repo of one commit; returns the commits by repo_id."""
    added = {}
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        repo_id = str(folder.relative_to(root))
        added[repo_id] = hub.add_revision(repo_id, files, title="Files from disk")
    return added


def main(argv: list[str] | None = None) -> int:
    """Serve a folder until the process is stopped; the first line on stdout is the endpoint."""
    parser = argparse.ArgumentParser(prog="python -m steelyard.standins.hub", description=main.__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds <org>/<name>/ for every repo")
    parser.add_argument("--rate", type=float, default=None, help="speed limit in bytes per second, all connections together")
    options = parser.parse_args(argv)
    with LoopbackHub() as hub:
        hub.rate_limit_bytes_per_s = options.rate
        commits = add_folder(hub, options.root)
        sys.stdout.write(hub.endpoint + "\n" + "".join(f"{commit} {repo_id}\n" for repo_id, commit in commits.items()))
        sys.stdout.flush()
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                return 0


if __name__ == "__main__":
    sys.exit(main())
