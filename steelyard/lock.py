"""steelyard.lock: commit, size and digest of every file agreed on. Reviewed in git; the root of trust.

Written before a download's first byte, from what the Hub publishes; moved only by `update`. Each model carries a digest of its own entry,
so that a slip of the hand or a bad merge is noticed, and merging two branches that touch different models needs no repair.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from steelyard.disk import read_regular, write_atomically
from steelyard.errors import BadRecord
from steelyard.manifest import holds_its_digest, record_digest, utc_now
from steelyard.names import check_names

VERSION = 1


@dataclass(frozen=True)
class LockedFile:
    """A file as the Hub publishes it: *sha256* for large files, *git_sha1* (blob id) for small ones; one of the two is there."""

    path: str
    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class LockedModel:
    repo_id: str
    revision: str
    commit: str
    files: tuple[LockedFile, ...]
    locked_at: str = field(default_factory=utc_now)
    scan: str = ""
    """What the Hub's own security scan said of these files when this was locked: safe, unsafe, queued… or empty when it said nothing."""
    flagged: tuple[tuple[str, str], ...] = ()
    """(path, level) of those that it had something to say against."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def get(self, path: str) -> LockedFile | None:
        return next((file for file in self.files if file.path == path), None)

    def as_record(self) -> dict[str, Any]:
        files = {
            file.path: {"size_bytes": file.size_bytes, **({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})}
            for file in sorted(self.files, key=lambda one: one.path)
        }
        record = {"repo_id": self.repo_id, "revision": self.revision, "commit": self.commit, "locked_at": self.locked_at, "files": files}
        if self.scan:
            record["scan"] = self.scan
        if self.flagged:
            record["flagged"] = dict(sorted(self.flagged))
        return {**record, "digest": record_digest(record)}


@dataclass(frozen=True)
class Lock:
    models: Mapping[str, LockedModel] = field(default_factory=dict)

    def get(self, model: str) -> LockedModel | None:
        return self.models.get(model)

    def with_model(self, name: str, locked: LockedModel) -> Lock:
        return replace(self, models={**self.models, name: locked})


def lock_path(config_path: Path) -> Path:
    """steelyard.lock lies beside steelyard.toml; another.toml has another.lock."""
    return config_path.with_suffix(".lock")


def read_lock(path: Path) -> Lock:
    """An empty lock where there is none yet.

    :raises BadRecord: when it is damaged, or an entry was changed by hand.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise BadRecord(path=str(path), why=error.strerror or "it can't be read") from error
    try:
        # People edit it, and some editors put a mark before UTF-8.
        record = orjson.loads(data.removeprefix(codecs.BOM_UTF8))
        if record["steelyard_lock"] != VERSION:
            raise BadRecord(path=str(path), why=f"its version is {record['steelyard_lock']!r}, we read {VERSION}")
        models = {name: locked_from_record(item, path, name) for name, item in record["models"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(path=str(path), why="it is not a lock file", hint="take it back from git, or from a replica's manifest") from error
    return Lock(models)


def locked_from_record(item: Mapping[str, Any], where: Path, name: str = "the model") -> LockedModel:
    """One entry of a lock. :raises BadRecord: when it fails its own digest. :raises ValueError, KeyError: when it is none."""
    if not holds_its_digest(item):
        hint = f"take {where.name} back from git; to agree on another version run: steelyard update {name}"
        raise BadRecord(path=str(where), why=f"the entry of {name} was changed or damaged", hint=hint)
    files = tuple(
        LockedFile(path, int(file["size_bytes"]), str(file.get("sha256", "")), str(file.get("git_sha1", "")))
        for path, file in item["files"].items()
    )
    check_names((file.path for file in files), where)
    if not all(file.etag for file in files):
        raise ValueError("a file without digest")
    flagged = tuple((str(path), str(level)) for path, level in sorted(item.get("flagged", {}).items()))
    return LockedModel(item["repo_id"], item["revision"], item["commit"], files, item["locked_at"], str(item.get("scan", "")), flagged)


def write_lock(path: Path, lock: Lock) -> None:
    record = {"steelyard_lock": VERSION, "models": {name: lock.models[name].as_record() for name in sorted(lock.models)}}
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n")
