"""What the stand-in Hub holds: contents, commits and repos, with the very object ids that git and Git LFS would give them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

Edit = Callable[[int, bytearray], None]
"""Alters a chunk in place, knowing its absolute offset in the file."""

Gated = Literal["auto", "manual", False]

READ_BYTES = 1 << 20
LFS_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".gguf", ".h5", ".msgpack", ".pkl", ".npz", ".zip", ".gz")
"""What the Hub's own .gitattributes of a new repo sends to LFS, whatever the size."""
LFS_ALWAYS_BYTES = 10 * 1000 * 1000


class Content:
    """The bytes of one file: given, or a path that is read when it is served and must not change meanwhile.

    Digests of a path are taken in chunks, once, and not at all when *sha256* is given (and then not checked either).
    """

    def __init__(self, source: bytes | Path, sha256: str | None = None) -> None:
        self.path = source if isinstance(source, Path) else None
        self.data = source if isinstance(source, bytes) else b""
        self.size_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
        if sha256 is not None:
            self.sha256 = sha256

    @cached_property
    def sha256(self) -> str:
        return self._digest(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        header = b"blob %d\0" % self.size_bytes
        return self._digest(hashlib.sha1(header, usedforsecurity=False))

    def _digest(self, digest: hashlib._Hash) -> str:
        for chunk in Body(self, 0, self.size_bytes).chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def open(self) -> BinaryIO | None:
        return self.path.open("rb", buffering=0) if self.path else None


@dataclass(frozen=True)
class Body:
    """A range of a content, perhaps altered on its way out."""

    content: Content
    start: int
    stop: int
    edits: tuple[Edit, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Body:
        """The bytes [start, stop) counted from the start of this body."""
        return Body(self.content, self.start + start, self.start + stop, self.edits)

    def chunks(self, size: int = READ_BYTES) -> Iterator[bytes | bytearray | memoryview]:
        """The bytes in order; beyond the end of the content come zeros (a fault may ask for them)."""
        file = self.content.open()
        try:
            for offset in range(self.start, self.stop, size):
                want = min(size, self.stop - offset)
                yield self._chunk(file, offset, want)
        finally:
            if file:
                file.close()

    def _chunk(self, file: BinaryIO | None, offset: int, want: int) -> bytes | bytearray | memoryview:
        if file:
            file.seek(offset)
            raw: bytes | memoryview = file.read(want)
        else:
            raw = memoryview(self.content.data)[offset : offset + want]
        if len(raw) == want and not self.edits:
            return raw
        chunk = bytearray(raw)
        chunk.extend(bytes(want - len(chunk)))
        for edit in self.edits:
            edit(offset, chunk)
        return chunk


def body_of(data: bytes) -> Body:
    return Body(Content(data), 0, len(data))


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. *blob_id* is git's: of the content, or of the pointer when the file is in LFS."""

    path: str
    content: Content
    lfs: bool

    @cached_property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.content.sha256}\nsize {self.content.size_bytes}\n"
        return text.encode()

    @cached_property
    def blob_id(self) -> str:
        return _git_id("blob", self.pointer) if self.lfs else self.content.git_sha1

    @property
    def etag(self) -> str:
        return self.content.sha256 if self.lfs else self.blob_id

    @cached_property
    def xet_hash(self) -> str:
        """Looks like a Xet hash, names nothing."""
        return hashlib.sha256(b"xet" + self.etag.encode()).hexdigest()


@dataclass(frozen=True)
class Commit:
    commit_id: str
    parent: str | None
    title: str
    author: str
    date: datetime
    files: Mapping[str, HubFile]

    @property
    def stamp(self) -> str:
        return stamp(self.date)

    @cached_property
    def folders(self) -> dict[str, str]:
        """Every folder's path and tree id."""
        trees = _trees(self.files)
        return {path: tree_id for path, tree_id in trees.items() if path}


@dataclass
class Scan:
    status: str = "safe"
    imports: tuple[str, ...] = ()


@dataclass
class Repo:
    """One model repo. Its fields may be set at any time; *readers* are the users who may read it when it is private or gated."""

    repo_id: str
    private: bool = False
    gated: Gated = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    scans: dict[str, Scan] = field(default_factory=dict)

    def commit(self, files: Mapping[str, HubFile], *, title: str, author: str, date: datetime, branch: str, parent: str | None) -> Commit:
        tree = _trees(files)[""]
        who = f"{author} <{author}@example.invalid> {int(date.timestamp())} +0000"
        ancestry = f"parent {parent}\n" if parent else ""
        text = f"tree {tree}\n{ancestry}author {who}\ncommitter {who}\n\n{title}\n"
        made = Commit(_git_id("commit", text.encode()), parent, title, author, date, dict(sorted(files.items())))
        self.commits[made.commit_id] = made
        self.branches[branch] = made.commit_id
        return made

    def resolve(self, revision: str) -> Commit | None:
        """Branch, tag, commit or a unique start of one (7 digits or more)."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit_id = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit_id in self.commits:
            return self.commits[commit_id]
        starts = [known for known in self.commits if len(revision) >= 7 and known.startswith(revision)]
        return self.commits[starts[0]] if len(starts) == 1 else None

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        at: Commit | None = commit
        while at:
            yield at
            at = self.commits.get(at.parent) if at.parent else None

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that gave the file (or folder) at *path* the content it has in *commit*."""
        changed = commit
        ours = _ids_below(commit, path)
        for older in self.history(commit):
            if _ids_below(older, path) != ours:
                break
            changed = older
        return changed

    def forget_unreachable(self) -> None:
        """What the Hub's own clean-up does after a force-push: commits that no branch or tag leads to are gone."""
        tips = {*self.branches.values(), *self.tags.values()}
        kept = {commit.commit_id for tip in tips for commit in self.history(self.commits[tip])}
        self.commits = {commit_id: commit for commit_id, commit in self.commits.items() if commit_id in kept}


def stamp(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def goes_to_lfs(path: str, size_bytes: int, threshold: int | None) -> bool:
    if threshold is not None:
        return size_bytes >= threshold
    return path.endswith(LFS_SUFFIXES) or size_bytes >= LFS_ALWAYS_BYTES


def _ids_below(commit: Commit, path: str) -> dict[str, str]:
    return {name: file.blob_id for name, file in commit.files.items() if name == path or name.startswith(path + "/")}


def _git_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _trees(files: Mapping[str, HubFile]) -> dict[str, str]:
    """The git id of the tree of every folder; the root is ""."""
    found: dict[str, str] = {}

    def build(prefix: str) -> str:
        entries: dict[str, tuple[str, str]] = {}
        for path, file in files.items():
            if not path.startswith(prefix):
                continue
            name, below, _ = path.removeprefix(prefix).partition("/")
            if name not in entries:
                entries[name] = ("40000", build(f"{prefix}{name}/")) if below else ("100644", file.blob_id)
        # git sorts folders as if their name ended with a slash
        ordered = sorted(entries.items(), key=lambda item: item[0] + ("/" if item[1][0] == "40000" else ""))
        data = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in ordered)
        found[prefix.rstrip("/")] = _git_id("tree", data)
        return found[prefix.rstrip("/")]

    build("")
    return found
