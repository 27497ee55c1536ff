"""What a whole copy contains: every file with its size, SHA-256 and pieces. Canonical JSON with a digest of itself, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

import orjson

from steelyard.errors import BadRecord
from steelyard.names import check_names
from steelyard.pieces import PIECE_BYTES, Digests, piece_ranges, piece_size

VERSION = 1
MAX_PIECE_BYTES = 8 * PIECE_BYTES
"""A piece is read into memory whole: a manifest from elsewhere must not name larger ones than we would make."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a snapshot. *path* is its path in the repo; digests are hex; *pieces* are BLAKE3 of ranges of *piece_bytes*."""

    path: str
    size_bytes: int
    sha256: str
    crc64nvme: str
    piece_bytes: int
    pieces: tuple[str, ...]
    etag: str = ""
    """What the Hub calls these bytes, and the name of their blob in the hub cache: SHA-256 for large files, git SHA-1 for small ones."""
    sha256_states: tuple[str, ...] = field(default=(), compare=False)
    """How the SHA-256 stood at each stretch (sha256.py). They say nothing that the digest does not: an entry without them is the same."""

    @classmethod
    def of(cls, path: str, digests: Digests, etag: str = "") -> Self:
        known = digests
        pieces, states = known.pieces, known.sha256_states
        return cls(path, known.size_bytes, known.sha256, known.crc64nvme, known.piece_bytes, pieces, etag or known.sha256, states)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return piece_ranges(self.size_bytes, self.piece_bytes)


@dataclass(frozen=True)
class Manifest:
    """The files of one model at one commit. *created_at* is when the bytes were first proven here (ISO 8601, UTC)."""

    model: str
    repo_id: str
    revision: str
    commit: str
    files: tuple[FileEntry, ...]
    created_at: str = field(default_factory=lambda: utc_now())

    def __getitem__(self, path: str) -> FileEntry:
        return self._by_path[path]

    def get(self, path: str) -> FileEntry | None:
        return self._by_path.get(path)

    @cached_property
    def _by_path(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.files}

    def with_file(self, entry: FileEntry) -> Manifest:
        """The same manifest with *entry* added or replaced; files stay sorted by path."""
        return self.with_files([entry])

    def with_files(self, entries: Iterable[FileEntry]) -> Manifest:
        known = {entry.path: entry for entry in [*self.files, *entries]}
        files = tuple(known[path] for path in sorted(known))
        return Manifest(self.model, self.repo_id, self.revision, self.commit, files, self.created_at)

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    def dump(self) -> bytes:
        """The sealed record; of a manifest that was read, the very bytes it was read from."""
        return self._sealed

    @cached_property
    def _sealed(self) -> bytes:
        return seal(
            {
                "steelyard_manifest": VERSION,
                "model": self.model,
                "repo_id": self.repo_id,
                "revision": self.revision,
                "commit": self.commit,
                "created_at": self.created_at,
                "files": [
                    {
                        "path": entry.path,
                        "size_bytes": entry.size_bytes,
                        "sha256": entry.sha256,
                        "crc64nvme": entry.crc64nvme,
                        "etag": entry.etag,
                        "piece_bytes": entry.piece_bytes,
                        "pieces": list(entry.pieces),
                        **({"sha256_states": list(entry.sha256_states)} if entry.sha256_states else {}),
                    }
                    for entry in self.files
                ],
            }
        )

    @classmethod
    def parse(cls, data: bytes, where: object) -> Self:
        """:raises BadRecord: when it is not a manifest, fails its own digest, or names a file outside its root."""
        record = unseal(data, where)
        try:
            if record["steelyard_manifest"] != VERSION:
                raise BadRecord(path=str(where), why=f"its version is {record['steelyard_manifest']!r}, we read {VERSION}")
            files = tuple(_entry(item) for item in record["files"])
            _check_hex([entry.crc64nvme for entry in files], 16)
            _check_hex([one for entry in files for one in (entry.sha256, *entry.pieces, *entry.sha256_states)], 64)
            manifest = cls(record["model"], record["repo_id"], record["revision"], record["commit"], files, record["created_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord(path=str(where), why="it is not a manifest", sealed=True) from error
        check_names((entry.path for entry in files), where)
        for entry in files:
            if len(entry.pieces) != -(-entry.size_bytes // entry.piece_bytes):
                raise BadRecord(path=str(where), why=f"the pieces of {entry.path} do not add up to its size", sealed=True)
        # Fills the property: readable JSON of 10,000 files takes a few tenths of a second to make, in every round that finds nothing to do.
        manifest.__dict__["_sealed"] = data
        return manifest


def _entry(item: Mapping[str, Any]) -> FileEntry:
    size, piece_bytes = int(item["size_bytes"]), int(item["piece_bytes"])
    if size < 0 or not 1 <= piece_bytes <= max(MAX_PIECE_BYTES, piece_size(size)):
        raise ValueError("sizes must be positive, and a piece must fit into memory")
    return FileEntry(
        path=str(item["path"]),
        size_bytes=size,
        sha256=item["sha256"],
        crc64nvme=item["crc64nvme"],
        piece_bytes=piece_bytes,
        pieces=tuple(item["pieces"]),
        etag=str(item["etag"]),
        sha256_states=tuple(item.get("sha256_states", ())),
    )


def _check_hex(texts: Sequence[str], digits: int) -> None:
    """:raises ValueError, TypeError: unless each of *texts* is so many digits from 0-9 and a-f; all in one go, because a manifest has many."""
    joined = "".join(texts)
    # fromhex allows spaces and capitals, so both are counted out.
    if set(map(len, texts)) - {digits} or 2 * len(bytes.fromhex(joined)) != len(joined) or joined != joined.lower():
        raise ValueError("not a hex digest")


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of *record* without its "digest"."""
    return "sha256:" + hashlib.sha256(canonical({key: value for key, value in record.items() if key != "digest"})).hexdigest()


def seal(record: Mapping[str, Any]) -> bytes:
    """*record* as readable JSON with a digest of itself."""
    return json.dumps({**record, "digest": record_digest(record)}, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def holds_its_digest(record: Mapping[str, Any]) -> bool:
    """Whether the "digest" in *record* is that of the rest of it."""
    said = record.get("digest")
    rest = {key: value for key, value in record.items() if key != "digest"}
    try:
        # The same text as canonical() makes of what we write, many times as quick. Where it is another (floats, say), canonical() has the word.
        if said == "sha256:" + hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest():
            return True
    except TypeError:
        pass
    try:
        return bool(said == record_digest(record))
    except RecursionError:
        return False


def unseal(data: bytes, where: object) -> dict[str, Any]:
    """:raises BadRecord: when it is no JSON object or fails its own digest."""
    try:
        record = orjson.loads(data)
    except ValueError as error:
        raise BadRecord(path=str(where), why="it is not JSON") from error
    if not isinstance(record, dict) or not holds_its_digest(record):
        raise BadRecord(path=str(where), why="its digest does not match its content")
    return record


def sha256sums(entries: Iterable[FileEntry]) -> bytes:
    """Lines for `sha256sum -c`."""
    return "".join(f"{entry.sha256}  {entry.path}\n" for entry in entries).encode()
