"""Who gets what: the Hub's addresses, its access rules and its error codes; and the object store behind the signed links."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, urlencode

from steelyard.standins import hub_answers
from steelyard.standins.hub_data import Body, Commit, HubFile, Repo
from steelyard.standins.hub_reply import Asked, Reply, error_reply, file_reply, json_reply, plain_reply, storage_error


@dataclass
class Token:
    user: str
    expired: bool = False


class Routes:
    """The state of the Hub, and the honest reply to every request. Every public attribute may be set while it runs."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: dict[str, Token] = {}
        self.endpoint = ""
        self.cdn_endpoint = ""
        self.url_lifetime_s = 3600.0
        self.page_entries = 1000
        self.page_expanded = 50
        self.offer_xet = False
        self._secret = secrets.token_bytes(32)
        self._signed: dict[str, HubFile] = {}
        self._epoch = 0

    # ---- the Hub's own port

    def on_hub(self, asked: Asked) -> Reply:
        with self.lock:
            user = self._user(asked)
            if isinstance(user, Reply):
                return user
            match asked.segments:
                case ["api", "whoami-v2"]:
                    return json_reply(hub_answers.whoami(user)) if user else error_reply(401, "", "Invalid username or password.")
                case ["api", "models", *rest] if rest:
                    return self._api(asked, user, rest)
                case [org, name, "resolve", revision, *path] if path:
                    return self._resolve(asked, user, f"{org}/{name}", revision, "/".join(path))
                case [name, "resolve", revision, *path] if path:
                    return self._resolve(asked, user, name, revision, "/".join(path))
            return error_reply(404, "", "Sorry, we can't find the page you are looking for.")

    def _user(self, asked: Asked) -> str | Reply | None:
        if asked.token is None:
            return None
        token = self.tokens.get(asked.token)
        if token is None:
            return error_reply(401, "", "Invalid credentials in Authorization header")
        return error_reply(401, "", "User Access Token is expired") if token.expired else token.user

    def _repo(self, asked: Asked, user: str | None, repo_id: str) -> Repo | Reply:
        if repo_id in self.renamed:
            moved = asked.target.replace(repo_id, self.renamed[repo_id], 1)
            return plain_reply(307, b"Temporary Redirect", "text/plain", {"Location": moved})
        repo = self.repos.get(repo_id)
        hidden = repo is not None and repo.private and user not in repo.readers
        if repo is None or hidden:
            # The Hub does not say whether a repo that may not be seen exists.
            if user is None:
                return error_reply(401, "RepoNotFound", "Invalid username or password.")
            return error_reply(404, "RepoNotFound", "Repository not found")
        if repo.disabled:
            return error_reply(403, "", "Access to this resource is disabled.")
        return repo

    def _api(self, asked: Asked, user: str | None, rest: list[str]) -> Reply:
        verbs = ("revision", "tree", "paths-info", "commits", "refs", "auth-check")
        words = 2 if len(rest) > 1 and rest[1] not in verbs else 1
        repo_id, verb, args = "/".join(rest[:words]), (rest[words : words + 1] or ["revision"])[0], rest[words + 1 :]
        repo = self._repo(asked, user, repo_id)
        if isinstance(repo, Reply):
            return repo
        if verb == "refs":
            return json_reply(hub_answers.refs(repo))
        if verb == "auth-check":
            return self._gate(repo, user) or json_reply({})
        revision = args[0] if args else "main"
        commit = repo.resolve(revision)
        if commit is None:
            return error_reply(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        answers: dict[str, Callable[[], Reply]] = {
            "revision": lambda: self._model_info(asked, repo, commit),
            "tree": lambda: self._tree(asked, repo, commit, "/".join(args[1:])),
            "paths-info": lambda: self._paths_info(asked, repo, commit),
            "commits": lambda: self._paged(asked, hub_answers.commits(repo, commit), self.page_expanded),
        }
        return answers[verb]() if verb in answers else error_reply(404, "", "Sorry, we can't find the page you are looking for.")

    def _model_info(self, asked: Asked, repo: Repo, commit: Commit) -> Reply:
        expand = asked.query.get("expand", [])
        found = hub_answers.model_info(repo, commit, blobs=asked.flag("blobs"), security=asked.flag("securityStatus"), expand=expand)
        return json_reply(found)

    def _tree(self, asked: Asked, repo: Repo, commit: Commit, path: str) -> Reply:
        expand = asked.flag("expand")
        found = hub_answers.tree(repo, commit, path, recursive=asked.flag("recursive"), expand=expand, xet=self.offer_xet)
        if found is None:
            return error_reply(404, "EntryNotFound", f"{path} does not exist on {commit.commit_id!r}")
        return self._paged(asked, found, self.page_expanded if expand else self.page_entries)

    def _paths_info(self, asked: Asked, repo: Repo, commit: Commit) -> Reply:
        if asked.method != "POST":
            return error_reply(404, "", "Cannot GET paths-info")
        if "json" in asked.headers.get("content-type", ""):
            document = json.loads(asked.payload)
            paths, expand = document.get("paths", []), bool(document.get("expand"))
        else:
            form = parse_qs(asked.payload.decode())
            paths, expand = form.get("paths", []), form.get("expand", ["false"])[-1].lower() == "true"
        return json_reply(hub_answers.paths_info(repo, commit, paths, expand=expand, xet=self.offer_xet))

    def _paged(self, asked: Asked, entries: list[hub_answers.Json], page: int) -> Reply:
        start = int(asked.query.get("cursor", ["0"])[-1])
        headers = {}
        if start + page < len(entries):
            query = {key: values[-1] for key, values in asked.query.items()} | {"cursor": str(start + page)}
            headers["Link"] = f'<{self.endpoint}{asked.path}?{urlencode(query)}>; rel="next"'
        return json_reply(entries[start : start + page], headers=headers)

    def _gate(self, repo: Repo, user: str | None) -> Reply | None:
        """Metadata of a gated repo is public; its files are not."""
        if not repo.gated or user in repo.readers:
            return None
        why = "You must have access to it and be authenticated to access it. Please log in." if user is None else "Ask for access first."
        return error_reply(401 if user is None else 403, "GatedRepo", f"Access to model {repo.repo_id} is restricted. {why}")

    def _resolve(self, asked: Asked, user: str | None, repo_id: str, revision: str, path: str) -> Reply:
        names = (path, f"{repo_id}/{path}")
        return replace(self._resolve_honestly(asked, user, repo_id, revision, path), names=names)

    def _resolve_honestly(self, asked: Asked, user: str | None, repo_id: str, revision: str, path: str) -> Reply:
        repo = self._repo(asked, user, repo_id)
        if isinstance(repo, Reply):
            return repo
        if refused := self._gate(repo, user):
            return refused
        commit = repo.resolve(revision)
        if commit is None:
            return error_reply(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        file = commit.files.get(path)
        if file is None:
            return error_reply(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.commit_id})
        headers = {
            "X-Repo-Commit": commit.commit_id,
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
            "Vary": "Origin",
        }
        if not file.lfs:
            kind = "text/plain; charset=utf-8" if path.endswith((".md", ".txt", ".json", ".yaml")) else "application/octet-stream"
            whole = Body(file.content, 0, file.content.size_bytes)
            return file_reply(asked, whole, file.etag, {**headers, "Content-Type": kind})
        headers |= {
            "X-Linked-Size": str(file.content.size_bytes),
            "X-Linked-Etag": f'"{file.etag}"',
            "Accept-Ranges": "bytes",
            "Location": self.sign(repo_id, file),
        }
        if self.offer_xet:
            refresh = f"{self.endpoint}/api/models/{repo_id}/xet-read-token/{commit.commit_id}"
            headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{refresh}>; rel="xet-auth"'}
        text = f"Found. Redirecting to {headers['Location']}"
        return plain_reply(302, text.encode(), "text/plain; charset=utf-8", headers)

    # ---- the CDN's port

    def sign(self, repo_id: str, file: HubFile) -> str:
        """A link to the file's bytes that holds for *url_lifetime_s*."""
        key = f"/repos/{quote(repo_id)}/{file.content.sha256}"
        self._signed[key] = file
        name = quote(file.path.rpartition("/")[2])
        query = {
            "response-content-disposition": f"inline; filename*=UTF-8''{name}; filename=\"{name}\";",
            "X-Path": file.path,
            "X-Epoch": str(self._epoch),
            "X-Expires": f"{time.time() + self.url_lifetime_s:.3f}",
        }
        return f"{self.cdn_endpoint}{key}?{urlencode(query)}&X-Signature={self._signature(key, urlencode(query))}"

    def expire_urls(self) -> None:
        """Every link signed until now is refused from now on."""
        with self.lock:
            self._epoch += 1

    def _signature(self, key: str, query: str) -> str:
        return hmac.new(self._secret, f"{key}?{query}".encode(), hashlib.sha256).hexdigest()

    def on_cdn(self, asked: Asked) -> Reply:
        query = {name: values[-1] for name, values in asked.query.items()}
        path = query.get("X-Path", "")
        repo_id = "/".join(asked.segments[1:-1])
        return replace(self._stored(asked, query), names=(path, f"{repo_id}/{path}"))

    def _stored(self, asked: Asked, query: dict[str, str]) -> Reply:
        signed, _, signature = asked.target.partition("?")[2].rpartition("&X-Signature=")
        with self.lock:
            file = self._signed.get(asked.path)
            if not hmac.compare_digest(self._signature(asked.path, signed), signature):
                return storage_error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")
            if float(query["X-Expires"]) < time.time() or int(query["X-Epoch"]) < self._epoch:
                return storage_error(403, "AccessDenied", "Request has expired")
            if file is None:
                return storage_error(404, "NoSuchKey", "The specified key does not exist.")
        headers = {"Content-Type": "application/octet-stream", "Content-Disposition": query["response-content-disposition"]}
        return file_reply(asked, Body(file.content, 0, file.content.size_bytes), file.etag, headers)
