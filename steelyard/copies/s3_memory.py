"""What need not be asked again: what we proved of a snapshot's objects, and listings of a few seconds ago."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from contextvars import copy_context
from dataclasses import asdict, dataclass
from pathlib import Path

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import Layout, Seen, head, listing
from steelyard.disk import errors_of, make_folder
from steelyard.errors import SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import slug

SWEEP_FROM_FILES = 16
"""From this many files on, a snapshot is looked at by ListObjects pages instead of a HEAD for each file."""
LISTING_S = 30.0
"""How long a listing is good for [s]."""


Taken = tuple[float, dict[str, tuple[int, str]]]
"""A listing and when it was begun (monotonic): path -> (size, ETag)."""


@dataclass(frozen=True)
class Remembered:
    """An object as we proved it: *etag* stands for content that had *sha256*."""

    path: str
    size_bytes: int
    etag: str
    sha256: str
    proof: str


class Memory:
    """What we proved of a snapshot's objects, in a local file of lines; lost, it costs requests and never safety. Safe from any thread."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / "objects" / identity
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], dict[str, Remembered]] = {}

    def of(self, manifest: Manifest, entry: FileEntry) -> Remembered | None:
        """What is remembered of a file with the content that the manifest names."""
        with self._lock:
            found = self._load(manifest).get(entry.path)
        return found if found is not None and (found.sha256, found.size_bytes) == (entry.sha256, entry.size_bytes) else None

    def keep(self, manifest: Manifest, entry: FileEntry, seen: Seen, proof: str) -> None:
        fresh = Remembered(entry.path, seen.size_bytes, seen.etag, entry.sha256, proof)
        with self._lock:
            known = self._load(manifest)
            if known.get(entry.path) == fresh:
                return
            known[entry.path] = fresh
            path = self._file(manifest)
            make_folder(path.parent)
            with errors_of(path), path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(fresh), ensure_ascii=False) + "\n")

    def _file(self, manifest: Manifest) -> Path:
        return self._folder / f"{slug(manifest.model)}-{slug(manifest.commit)}.jsonl"

    def _load(self, manifest: Manifest) -> dict[str, Remembered]:
        name = (manifest.model, manifest.commit)
        if name not in self._known:
            self._known[name] = known = {}
            try:
                lines = self._file(manifest).read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                lines = []
            for line in lines:
                try:
                    one = Remembered(**json.loads(line))
                except (ValueError, TypeError):
                    continue  # a line torn by a kill
                known[one.path] = one
        return self._known[name]


class Listings:
    """Snapshots as ListObjects shows them: path -> (size, ETag). Safe from any thread."""

    def __init__(self, bucket: Bucket, layout: Layout) -> None:
        self._bucket = bucket
        self._layout = layout
        self._lock = threading.Lock()
        self._taken: dict[tuple[str, str], Taken] = {}
        self._coming: dict[tuple[str, str], tuple[threading.Thread, list[Taken]]] = {}

    def foresee(self, model: str, commit: str) -> None:
        """Begin to list a snapshot that of() will soon be asked for; what goes wrong with it is of()'s to find out."""
        name, context = (model, commit), copy_context()
        came: list[Taken] = []

        def take() -> None:
            with contextlib.suppress(SteelyardError, Told):
                came.append(context.run(self._take, name))

        thread = threading.Thread(target=take, name="listing", daemon=True)
        with self._lock:
            if name not in self._coming:
                self._coming[name] = (thread, came)
                thread.start()

    def of(self, manifest: Manifest, *, fresh: bool = False) -> dict[str, tuple[int, str]]:
        """A listing at most LISTING_S old, or a *fresh* one; not to be changed."""
        name = (manifest.model, manifest.commit)
        with self._lock:
            if (coming := self._coming.pop(name, None)) is not None:
                coming[0].join()
                for taken in coming[1]:
                    self._taken[name] = taken
            taken_at, found = self._taken.get(name, (0.0, {}))
            if fresh or not taken_at or time.monotonic() - taken_at > LISTING_S:
                _, found = self._taken[name] = self._take(name)
            return found

    def _take(self, name: tuple[str, str]) -> Taken:
        folder, taken_at = self._layout.folder(*name), time.monotonic()
        return taken_at, {key.removeprefix(folder): (size, etag) for key, size, etag in listing(self._bucket, folder)}

    def stat(self, manifest: Manifest, entry: FileEntry) -> tuple[int, str] | None:
        """(size, stat) of a file, None when it is not there: from a listing where the snapshot has many files, else by HEAD."""
        if len(manifest.files) >= SWEEP_FROM_FILES:
            found = self.of(manifest).get(entry.path)
            return None if found is None else (found[0], f"{found[0]}:{found[1]}:")
        seen = head(self._bucket, self._layout.key(manifest, entry.path))
        return None if seen is None else (seen.size_bytes, seen.stat)

    def put(self, manifest: Manifest, path: str, seen: Seen) -> None:
        """What we wrote ourselves since a listing was taken."""
        with self._lock:
            _, found = self._taken.get((manifest.model, manifest.commit), (0.0, {}))
            found[path] = (seen.size_bytes, seen.etag)
