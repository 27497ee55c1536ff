"""Bytes of a new snapshot that the store has already, in older snapshots: they are copied there and not sent again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import Seen
from steelyard.copies.s3_parts import CopyFrom, parts_of
from steelyard.errors import BadRecord
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import MIB

COPY_AT_LEAST = MIB
"""A smaller file is sent: that is one request too."""
COPY_WHOLE_BYTES = 256 * MIB
"""Up to here one CopyObject; above it UploadPartCopy in parts of this size, in parallel (S3's own limit is 5 GiB)."""

Held = tuple[Manifest, FileEntry]


class Older:
    """The other snapshots of a replica: their manifests, read once a model. *commits* and *manifest* are the replica's own."""

    def __init__(self, commits: Callable[[str], list[str]], manifest: Callable[[str, str], Manifest | None]) -> None:
        self._commits = commits
        self._manifest = manifest
        self._read: dict[str, tuple[Manifest, ...]] = {}

    def than(self, manifest: Manifest) -> tuple[Manifest, ...]:
        """Newest first. One that is damaged costs bytes and nothing else."""
        if manifest.model not in self._read:
            found = []
            for commit in reversed(self._commits(manifest.model)):
                with contextlib.suppress(BadRecord):
                    one = self._manifest(manifest.model, commit)
                    found += [one] if one is not None else []
            self._read[manifest.model] = tuple(found)
        return tuple(one for one in self._read[manifest.model] if one.commit != manifest.commit)

    def forget(self, model: str) -> None:
        self._read.pop(model, None)


def same_content(entry: FileEntry, older: Iterable[Manifest]) -> Iterator[Held]:
    """Where older snapshots name the very same bytes."""
    for manifest in older:
        for one in manifest.files:
            if (one.sha256, one.size_bytes) == (entry.sha256, entry.size_bytes):
                yield manifest, one


def same_parts(
    entry: FileEntry, part_bytes: int, older: Iterable[Manifest], proven: Callable[[Manifest, FileEntry], Seen | None]
) -> dict[int, CopyFrom]:
    """Parts of a changed file whose every piece stands, in a row, in some file of an older snapshot: part number -> where.

    *proven* tells what the store has of an older file, or None when that is not right; it is asked once a file.
    """
    at: dict[str, list[tuple[Held, int]]] = {}
    for manifest in older:
        for one in manifest.files:
            if one.piece_bytes == entry.piece_bytes and one.size_bytes >= part_bytes:
                for index, piece in enumerate(one.pieces):
                    at.setdefault(piece, []).append(((manifest, one), index))
    seen: dict[tuple[str, str], Seen | None] = {}
    found: dict[int, CopyFrom] = {}
    for part in parts_of(entry, part_bytes):
        wanted = entry.pieces[part.first : part.last]
        for (manifest, one), index in at.get(wanted[0], ()):
            start = index * one.piece_bytes
            if one.pieces[index : index + len(wanted)] != wanted or start + part.end - part.start > one.size_bytes:
                continue
            name = (manifest.commit, one.path)
            if name not in seen:
                seen[name] = proven(manifest, one)
            source = seen[name]
            if source is not None:
                found[part.number] = CopyFrom(source, start)
                break
    return found


def copy_whole(bucket: Bucket, source: Seen, key: str, over: Seen | None, conditions: bool, settings: dict[str, Any]) -> bool:
    """One CopyObject inside the bucket, with a full-object checksum. False when the store can't, the source has changed or *key* was written meanwhile."""
    condition: dict[str, Any] = {}
    if conditions:
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": f'"{over.etag}"'}
    algorithm: dict[str, Any] = {"ChecksumAlgorithm": "CRC64NVME"} if source.crc64nvme else {}
    version = {"VersionId": source.version} if source.version else {}
    wanted = {name: value for name, value in settings.items() if name != "Metadata"}
    try:
        bucket.call(
            "copy_object",
            expect={"missing", "conflict", "unsupported", "archived"},
            Key=key,
            CopySource={"Bucket": bucket.name, "Key": source.key, **version},
            CopySourceIfMatch=f'"{source.etag}"',
            **algorithm,
            **condition,
            **wanted,
        )
    except Told:
        return False
    return True
