"""The kinds of copy that the contract suite runs against, each with a way in behind the copy's back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from awscrt.checksums import crc64nvme
from blake3 import blake3

from steelyard.config import Config, ModelConfig, MountConfig, S3Config, StoreConfig
from steelyard.copies.base import Copy, ProvenReader
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.copies.s3 import S3Replica
from steelyard.copies.s3_abilities import Abilities, remember
from steelyard.hubcache import HubCache
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import piece_ranges
from steelyard.source import LocalFile
from steelyard.store import Store

PIECE = 64 * 1024
MIB = 1 << 20
PART = 5 * MIB
MODEL = "mvdream"
COMMIT = "a" * 40


def entry_of(path: str, data: bytes, piece_bytes: int = PIECE) -> FileEntry:
    import hashlib

    pieces = tuple(blake3(data[start:end]).hexdigest() for start, end in piece_ranges(len(data), piece_bytes))
    return FileEntry(
        path, len(data), hashlib.sha256(data).hexdigest(), f"{crc64nvme(data):016x}", piece_bytes, pieces, hashlib.sha256(data).hexdigest()
    )


def manifest_of(*entries: FileEntry, commit: str = COMMIT) -> Manifest:
    files = tuple(sorted(entries, key=lambda one: one.path))
    return Manifest(MODEL, "MVDream/MVDream", "main", commit, files, "2026-11-22T12:00:00+00:00")


class Bytes:
    """A source in memory. *fail_at*: the read that begins there or behind raises what is given; *reads* counts bytes."""

    def __init__(self, data: bytes, *, fail_at: int | None = None, error: BaseException | None = None, kill: bool = False) -> None:
        self.data = data
        self.fail_at = fail_at
        self.error = error
        self.kill = kill
        self.bytes_read = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "memory"

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        if self.fail_at is not None and offset >= self.fail_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            assert self.error is not None
            raise self.error
        chunk = self.data[offset : offset + len(buffer)]
        buffer[: len(chunk)] = chunk
        with self._lock:
            self.bytes_read += len(chunk)
        return len(chunk)

    def close(self) -> None:
        pass


def reader_of(entry: FileEntry, *sources: Any) -> ProvenReader:
    return ProvenReader(entry, {f"source-{index}": source for index, source in enumerate(sources)})


class Interrupted(Exception):
    """Stands for whatever ends a run in the middle."""


class Kind(Protocol):
    """One kind of copy, and what the suite does behind its back."""

    name: str
    keeps_manifests: bool
    several_commits: bool
    in_flight_bytes: int

    def copy(self) -> Copy:
        """The copy as a new process would see it."""

    def spec(self) -> dict[str, Any]:
        """What a child process makes it from."""

    def read(self, manifest: Manifest, path: str) -> bytes | None: ...

    def write(self, manifest: Manifest, path: str, data: bytes) -> None: ...

    def delete(self, manifest: Manifest, path: str) -> None: ...

    def leftovers(self) -> list[str]:
        """What unfinished runs have left in staging."""


@dataclass
class FolderKind:
    name: str
    root: Path
    keeps_manifests: bool = True
    several_commits: bool = True
    in_flight_bytes: int = 2 * PIECE

    def copy(self) -> FolderCopy:
        copy = build(self.spec())
        assert isinstance(copy, FolderCopy)
        return copy

    def spec(self) -> dict[str, Any]:
        return {"kind": self.name, "root": str(self.root)}

    def _path(self, manifest: Manifest, path: str) -> Path:
        if path in {entry.path for entry in manifest.files}:
            return self.copy().path_of(manifest, path)
        if self.name == "mount":
            return self.root / manifest.model / manifest.commit / path
        return self.root / "models" / manifest.model / path

    def read(self, manifest: Manifest, path: str) -> bytes | None:
        there = self._path(manifest, path)
        return there.read_bytes() if there.is_file() else None

    def write(self, manifest: Manifest, path: str, data: bytes) -> None:
        there = self._path(manifest, path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(data)

    def delete(self, manifest: Manifest, path: str) -> None:
        self._path(manifest, path).unlink()

    def leftovers(self) -> list[str]:
        folder = self.copy().ours / "staging"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@dataclass
class S3Kind:
    endpoint_url: str
    bucket: str
    prefix: str
    ours: Path
    client: Any
    name: str = "s3"
    keeps_manifests: bool = True
    several_commits: bool = True
    in_flight_bytes: int = 2 * PART
    extra: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> S3Replica:
        copy = build(self.spec())
        assert isinstance(copy, S3Replica)
        return copy

    def spec(self) -> dict[str, Any]:
        settings = {"bucket": self.bucket, "prefix": self.prefix, "endpoint_url": self.endpoint_url, "part_size": PART, "connections": 2}
        return {"kind": "s3", "ours": str(self.ours), "settings": settings | self.extra}

    def knows(self, abilities: Abilities) -> None:
        """What the store can do was found out before."""
        replica = self.copy()
        remember(replica.ours / f"abilities-{replica.bucket.identity}.json", abilities)

    def key(self, manifest: Manifest, path: str) -> str:
        return f"{self.prefix}/{manifest.model}/{manifest.commit}/{path}"

    def read(self, manifest: Manifest, path: str) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key(manifest, path))
        except self.client.exceptions.NoSuchKey:
            return None
        data: bytes = answer["Body"].read()
        return data

    def write(self, manifest: Manifest, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self.key(manifest, path), Body=data)

    def delete(self, manifest: Manifest, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.key(manifest, path))

    def open_uploads(self) -> list[tuple[str, str]]:
        answer = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self.prefix)
        return [(one["Key"], one["UploadId"]) for one in answer.get("Uploads", [])]

    def leftovers(self) -> list[str]:
        records = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.prefix}/.steelyard/uploads/").get("Contents", [])
        local = (path.name for path in (self.ours / "uploads").rglob("*.jsonl"))
        return sorted([*(key for key, _ in self.open_uploads()), *(one["Key"] for one in records), *local])


def build(spec: Mapping[str, Any]) -> Copy:
    if spec["kind"] == "s3":
        return S3Replica("s3", S3Config(kind="s3", **spec["settings"]), Path(spec["ours"]), patience_s=spec.get("patience_s", 150.0))
    root = Path(spec["root"])
    if spec["kind"] == "mount":
        return MountReplica("usb", MountConfig(kind="mount", path=root, mount_point=False))
    config = Config(
        store=StoreConfig(models=root / "models", hf_home=root / "hf"),
        models={MODEL: ModelConfig(repo_id="MVDream/MVDream")},
    )
    return Store(config) if spec["kind"] == "store" else HubCache(config)


def bring_and_die(spec: Mapping[str, Any], manifest: Manifest, entry: FileEntry, source: Path, at: int) -> None:
    """In a child process: bring *entry* out of *source* and be killed by SIGKILL when a byte from *at* on is read."""
    told = {"spec": dict(spec), "manifest": manifest.dump().decode(), "path": entry.path, "source": str(source), "at": at}
    child = subprocess.run([sys.executable, __file__], input=json.dumps(told).encode(), capture_output=True, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


def _child() -> None:
    told = json.load(sys.stdin)
    manifest = Manifest.parse(told["manifest"].encode(), "the test")
    entry = manifest[told["path"]]
    with LocalFile(Path(told["source"])) as file:
        data = file.path.read_bytes()
    build(told["spec"]).bring(manifest, entry, reader_of(entry, Bytes(data, fail_at=told["at"], kill=True)))


if __name__ == "__main__":
    _child()
