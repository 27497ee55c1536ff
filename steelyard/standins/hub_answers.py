"""The JSON of the Hub's API, as the real client reads it: model info, tree, paths-info, commits, refs, whoami."""

from __future__ import annotations

from typing import Any

from steelyard.standins.hub_data import Commit, HubFile, Repo, stamp

Json = dict[str, Any]


def model_info(repo: Repo, commit: Commit, *, blobs: bool, security: bool, expand: list[str]) -> Json:
    """The answer of /api/models/{repo}; with *expand* only what was asked for, as the real one does."""
    tip = repo.commits[repo.branches["main"]] if "main" in repo.branches else commit
    first = list(repo.history(tip))[-1]
    whole: Json = {
        "author": repo.repo_id.partition("/")[0],
        "sha": commit.commit_id,
        "lastModified": commit.stamp,
        "createdAt": stamp(first.date),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": ["license:openrail", "region:us"],
        "cardData": {"license": "openrail"},
        "siblings": [_sibling(file, blobs=blobs) for file in commit.files.values()],
        "spaces": [],
        "usedStorage": sum(file.content.size_bytes for file in commit.files.values() if file.lfs),
    }
    if security or "securityRepoStatus" in expand:
        whole["securityRepoStatus"] = _repo_scan(repo, commit)
    if expand:
        whole = {key: value for key, value in whole.items() if key in expand}
    return {"_id": commit.commit_id[:24], "id": repo.repo_id, "modelId": repo.repo_id, **whole}


def tree(repo: Repo, commit: Commit, path: str, *, recursive: bool, expand: bool, xet: bool) -> list[Json] | None:
    """Folders and files below *path*, in the order of their names; None when there is no such folder."""
    folders = commit.folders
    if path and path not in folders:
        return None
    prefix = f"{path}/" if path else ""
    entries: list[Json] = []
    for name in sorted([*folders, *commit.files]):
        if not name.startswith(prefix) or (not recursive and "/" in name.removeprefix(prefix)):
            continue
        entries.append(entry(repo, commit, name, folders, expand=expand, xet=xet))
    return entries


def paths_info(repo: Repo, commit: Commit, paths: list[str], *, expand: bool, xet: bool) -> list[Json]:
    """What is known of the named paths; those that do not exist are left out, as the real one does."""
    folders = commit.folders
    known = [path for path in paths if path in folders or path in commit.files]
    return [entry(repo, commit, path, folders, expand=expand, xet=xet) for path in known]


def entry(repo: Repo, commit: Commit, path: str, folders: dict[str, str], *, expand: bool, xet: bool) -> Json:
    file = commit.files.get(path)
    if file is None:
        found: Json = {"type": "directory", "oid": folders[path], "size": 0, "path": path}
    else:
        found = {"type": "file", "oid": file.blob_id, "size": file.content.size_bytes, "path": path}
        if file.lfs:
            found["lfs"] = {"oid": file.content.sha256, "size": file.content.size_bytes, "pointerSize": len(file.pointer)}
            if xet:
                found["xetHash"] = file.xet_hash
    if expand:
        changed = repo.last_change(commit, path)
        found["lastCommit"] = {"id": changed.commit_id, "title": changed.title, "date": changed.stamp}
        if file is not None:
            found["securityFileStatus"] = _file_scan(repo, path)
    return found


def commits(repo: Repo, commit: Commit) -> list[Json]:
    return [
        {"id": past.commit_id, "title": past.title, "message": "", "authors": [{"user": past.author, "avatar": ""}], "date": past.stamp}
        for past in repo.history(commit)
    ]


def refs(repo: Repo) -> Json:
    def listed(kind: str, known: dict[str, str]) -> list[Json]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit_id} for name, commit_id in known.items()]

    return {"branches": listed("heads", repo.branches), "converts": [], "tags": listed("tags", repo.tags), "pullRequests": []}


def whoami(user: str) -> Json:
    token = {"displayName": "steelyard", "role": "read", "createdAt": "2026-01-01T00:00:00.000Z"}
    return {
        "type": "user",
        "id": "0" * 24,
        "name": user,
        "fullname": user,
        "isPro": False,
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": token},
    }


def _sibling(file: HubFile, *, blobs: bool) -> Json:
    found: Json = {"rfilename": file.path}
    if blobs:
        found |= {"blobId": file.blob_id, "size": file.content.size_bytes}
        if file.lfs:
            found["lfs"] = {"sha256": file.content.sha256, "size": file.content.size_bytes, "pointerSize": len(file.pointer)}
    return found


def _file_scan(repo: Repo, path: str) -> Json:
    scan = repo.scans.get(path)
    status, imports = (scan.status, scan.imports) if scan else ("safe", ())
    # A flag comes from the pickle scan as a rule; the virus scan stays what it was.
    found = [{"module": module, "name": name, "safety": "dangerous"} for module, _, name in (whole.rpartition(".") for whole in imports)]
    quiet = status in ("safe", "unsafe", "suspicious")
    return {
        "status": status,
        "avScan": {"status": "safe" if quiet else status, "version": "0.0.0"},
        "pickleImportScan": {"status": status, "pickleImports": found} if path.endswith((".pt", ".pth", ".bin", ".ckpt", ".pkl")) else None,
    }


def _repo_scan(repo: Repo, commit: Commit) -> Json:
    held = {path: scan.status for path, scan in repo.scans.items() if path in commit.files}
    issues = [{"path": path, "level": status} for path, status in held.items() if status in ("unsafe", "suspicious")]
    return {"scansDone": "queued" not in held.values(), "filesWithIssues": issues}
