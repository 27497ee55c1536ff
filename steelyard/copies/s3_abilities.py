"""What a store can do, found out once by asking and remembered: AWS, SeaweedFS, MinIO, R2, B2, Ceph and Garage differ just here."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Kind, Told
from steelyard.copies.s3_objects import Layout, crc_text, head
from steelyard.disk import write_atomically
from steelyard.errors import BadAnswer, BadRecord, OtherSide, Refused
from steelyard.manifest import seal, unseal

RENEW_S = 30 * 86400.0
"""Abilities are asked for again after this long: stores get updated."""
_UNABLE: frozenset[Kind] = frozenset({"unsupported", "bad-part"})


@dataclass(frozen=True)
class Abilities:
    """*checksums*: it checks and returns a full-object CRC-64/NVME, for whole and multipart objects. *conditions*: If-None-Match and If-Match hold
    on PUT; *complete_conditions*: on CompleteMultipartUpload. *md5_etag*: the ETag of a plain object is the MD5 of its bytes.
    *list_uploads*: open uploads can be listed. *copy_parts*: UploadPartCopy works.
    """

    checksums: bool
    conditions: bool
    complete_conditions: bool
    md5_etag: bool
    list_uploads: bool
    copy_parts: bool

    @property
    def proof(self) -> str:
        """What a default look can rest on."""
        return "crc64nvme by HEAD" if self.checksums else "part MD5 ETag by HEAD" if self.md5_etag else "ranged reads"


def remembered(path: Path) -> Abilities | None:
    """What was found out earlier, unless it is too old or can't be read."""
    try:
        record = unseal(path.read_bytes(), path)
        if time.time() - float(record["found_at"]) > RENEW_S:
            return None
        return Abilities(**{one.name: bool(record["abilities"][one.name]) for one in fields(Abilities)})
    except (OSError, BadRecord, KeyError, TypeError, ValueError):
        return None


def remember(path: Path, abilities: Abilities) -> None:
    write_atomically(path, seal({"abilities": asdict(abilities), "found_at": int(time.time())}))


def find_out(bucket: Bucket, layout: Layout) -> Abilities:
    """Write, look at and remove two small objects of our own; about a dozen requests.

    :raises AccessDenied, Gone, Refused, Unreachable: as the first write tells.
    """
    # One name for all times: where we may not delete, one small object stays, not one a run.
    key = layout.ours("probe")
    body = b"steelyard probes what this store can do\n"
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    checksums = _takes_checksums(bucket, key, body)
    seen = head(bucket, key)
    if seen is None or seen.size_bytes != len(body):
        raise BadAnswer(who=bucket.who, why="an object just written is not there")
    conditions = _refuses(bucket, "put_object", Key=key, Body=body, IfNoneMatch="*") and _refuses(
        bucket, "put_object", Key=key, Body=body, IfMatch=f'"{"0" * 32}"'
    )
    full, complete, listed, copies = _multipart(bucket, key, body, checksums)
    _remove(bucket, key)
    return Abilities(
        checksums=checksums and full,
        conditions=conditions,
        complete_conditions=complete,
        md5_etag=seen.etag == md5,
        list_uploads=listed,
        copy_parts=copies,
    )


def _crc(body: bytes) -> str:
    from awscrt.checksums import crc64nvme

    return crc_text(crc64nvme(body))


def _takes_checksums(bucket: Bucket, key: str, body: bytes) -> bool:
    """Whether a wrong CRC-64/NVME is refused and a right one comes back. The object is there afterwards either way.

    The plain PUT comes first: what it raises is about credentials and permission, not about checksums.
    """
    bucket.call("put_object", Key=key, Body=body)
    if not _refuses(bucket, "put_object", "damaged", Key=key, Body=body, ChecksumCRC64NVME=_crc(body + b"x")):
        bucket.call("put_object", Key=key, Body=body)
        return False
    try:
        bucket.call("put_object", expect=_UNABLE, Key=key, Body=body, ChecksumCRC64NVME=_crc(body))
    except (Told, BadAnswer):
        return False
    seen = head(bucket, key)
    return seen is not None and seen.crc64nvme == _crc(body)


def _refuses(bucket: Bucket, operation: str, how: Kind = "conflict", **parameters: Any) -> bool:
    """Whether a call that must fail does, and for the right reason."""
    try:
        bucket.call(operation, expect={how, *_UNABLE}, **parameters)
    except Told as told:
        return told.kind == how
    except (BadAnswer, Refused):
        return False  # it takes offence at the header itself
    return False


def _multipart(bucket: Bucket, key: str, body: bytes, checksums: bool) -> tuple[bool, bool, bool, bool]:
    """(full-object checksum holds, condition on complete holds, uploads are listed, parts can be copied), tried on one upload that never completes."""
    asked: dict[str, Any] = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} if checksums else {}
    try:
        upload = str(bucket.call("create_multipart_upload", expect=_UNABLE, Key=key, **asked)["UploadId"])
    except (Told, BadAnswer) as error:
        if checksums:
            _, *rest = _multipart(bucket, key, body, checksums=False)
            return False, rest[0], rest[1], rest[2]
        raise Refused(why=f"{bucket.who}: the store takes no multipart uploads", hint="use a store that does") from error
    try:
        crc: dict[str, Any] = {"ChecksumCRC64NVME": _crc(body)} if checksums else {}
        part = bucket.call("upload_part", Key=key, UploadId=upload, PartNumber=1, Body=body, **crc)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], **crc}]}
        wrong: dict[str, Any] = {"ChecksumCRC64NVME": _crc(body + b"x"), "ChecksumType": "FULL_OBJECT"}
        same: dict[str, Any] = {"Key": key, "UploadId": upload, "MultipartUpload": parts}
        full = checksums and _refuses(bucket, "complete_multipart_upload", "damaged", **same, **wrong)
        listed = False
        try:
            answer = bucket.call("list_multipart_uploads", expect=_UNABLE, Prefix=key)
            listed = any(one.get("UploadId") == upload for one in answer.get("Uploads", ()))
        except (Told, BadAnswer, Refused):
            pass
        copies = True
        try:
            source = {"Bucket": bucket.name, "Key": key}
            bucket.call("upload_part_copy", expect=_UNABLE, Key=key, UploadId=upload, PartNumber=2, CopySource=source)
        except (Told, BadAnswer, Refused):
            copies = False
        complete = _refuses(bucket, "complete_multipart_upload", **same, IfNoneMatch="*")
        return full, complete, listed, copies
    finally:
        with contextlib.suppress(Told):  # a store that ignores conditions has completed it
            bucket.call("abort_multipart_upload", expect={"no-upload"}, Key=key, UploadId=upload)


def _remove(bucket: Bucket, key: str) -> None:
    with contextlib.suppress(Told, OtherSide, Refused):  # least power: without permission to delete, the probe stays
        bucket.call("delete_object", expect={"missing"}, Key=key)
