"""Objects of a bucket: where a file lies and what the store says of it."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_pages import OBJECTS
from steelyard.manifest import Manifest
from steelyard.names import OURS, check_name, is_plain
from steelyard.watch import Watch


def crc_text(crc64nvme: int | str) -> str:
    """A CRC-64/NVME as S3 writes it: base64 of 8 bytes, big-endian. From a number or 16 hex digits."""
    value = int(crc64nvme, 16) if isinstance(crc64nvme, str) else crc64nvme
    return base64.b64encode(value.to_bytes(8, "big")).decode()


@dataclass(frozen=True)
class Seen:
    """What the store says of an object. *etag* is without its quotes; *crc64nvme* in S3's text, "" where the store keeps none."""

    key: str
    size_bytes: int
    etag: str
    crc64nvme: str = ""
    sha256: str = ""
    version: str = ""
    storage_class: str = ""
    restore: str = ""
    archive_status: str = ""
    """Of an object in Intelligent-Tiering that went into one of its archives."""
    locked_until: str = ""
    """Until when no version of it can be deleted (object lock), ISO 8601; "" where it is not locked or we may not know."""
    sealed_ns: int = 0

    @property
    def stat(self) -> str:
        """Identifies the object as it is: size, ETag and version."""
        return f"{self.size_bytes}:{self.etag}:{self.version}"

    @property
    def in_archive(self) -> bool:
        """Its bytes must be asked back and waited for."""
        kept_there = self.storage_class in {"GLACIER", "DEEP_ARCHIVE"} and 'ongoing-request="false"' not in self.restore
        return kept_there or bool(self.archive_status)

    @property
    def on_its_way(self) -> bool:
        """It was asked back out of the archive and is not there yet."""
        return 'ongoing-request="true"' in self.restore


def head(bucket: Bucket, key: str, watch: Watch | None = None) -> Seen | None:
    """One HEAD, with the checksum; None when nothing is there."""
    try:
        answer = bucket.call("head_object", expect={"missing"}, watch=watch, Key=key, ChecksumMode="ENABLED")
    except Told:
        return None
    sha256 = str(answer.get("ChecksumSHA256", ""))
    return Seen(
        key=key,
        size_bytes=int(answer["ContentLength"]),
        etag=str(answer.get("ETag", "")).strip('"'),
        crc64nvme=str(answer.get("ChecksumCRC64NVME", "")),
        # A composite checksum ("…-3") is one over the parts' checksums and can't be compared with a file's.
        sha256=base64.b64decode(sha256).hex() if sha256 and "-" not in sha256 else "",
        version=str(answer.get("VersionId", "")),
        storage_class=str(answer.get("StorageClass", "")),
        restore=str(answer.get("Restore", "")),
        archive_status=str(answer.get("ArchiveStatus", "")),
        locked_until=locked.isoformat() if (locked := answer.get("ObjectLockRetainUntilDate")) is not None else "",
        sealed_ns=_number(answer.get("Metadata", {}).get("steelyard-sealed-ns")),
    )


def _number(text: Any) -> int:
    return int(text) if isinstance(text, str) and text.isdigit() else 0


def get(bucket: Bucket, key: str) -> bytes | None:
    """A small object, whole; None when nothing is there. A read that breaks off is begun again."""
    from steelyard.copies.s3_source import S3Source

    seen = head(bucket, key)
    if seen is None:
        return None
    buffer = bytearray(seen.size_bytes)
    S3Source(bucket, seen).readinto(0, memoryview(buffer))
    return bytes(buffer)


def listing(bucket: Bucket, prefix: str, *, delimiter: str = "") -> Iterator[tuple[str, int, str]]:
    """(key, size, ETag) of every object below *prefix*, a thousand a request; with *delimiter* also the common prefixes, as (prefix, -1, "")."""
    more: dict[str, Any] = {"Delimiter": delimiter} if delimiter else {}
    while True:
        answer = bucket.call("list_objects_v2", Prefix=prefix, **more)
        for one in answer.get("CommonPrefixes", ()):
            yield one["Prefix"], -1, ""
        yield from answer.get(OBJECTS, ())
        for one in answer.get("Contents", ()):
            yield one["Key"], int(one["Size"]), str(one.get("ETag", "")).strip('"')
        token = answer.get("NextContinuationToken")
        if not answer.get("IsTruncated") or not token or token == more.get("ContinuationToken"):
            return
        more["ContinuationToken"] = token


@dataclass(frozen=True)
class Layout:
    """Which key a file has: <prefix>/<model>/<commit>/<path>; our own records lie below <prefix>/.steelyard/."""

    bucket: str
    prefix: str

    def ours(self, name: str) -> str:
        return self._join(OURS, name)

    def models(self, model: str) -> str:
        return self._join(check_part(model), "")

    def folder(self, model: str, commit: str) -> str:
        return self._join(check_part(model), check_part(commit), "")

    def key(self, manifest: Manifest, path: str) -> str:
        if not is_plain(path):
            check_name(path, "the snapshot")
        return self.folder(manifest.model, manifest.commit) + path

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def _join(self, *parts: str) -> str:
        return "/".join([self.prefix, *parts]) if self.prefix else "/".join(parts)


@functools.cache
def check_part(name: str) -> str:
    """A model's or commit's name as one part of a key. :raises UnsafeName:"""
    return "/".join(check_name(name, "the bucket").parts)
