"""Settings of a bucket that are its owner's: asked for and told, and changed only where somebody asked for just that."""

from __future__ import annotations

from typing import Literal

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.errors import AccessDenied, BadAnswer, Gone, Refused

State = Literal["on", "suspended", "off", "unknown"]


def versioning_of(bucket: Bucket) -> State:
    """Whether the bucket keeps older versions. "unknown" where the store does not know the question or we may not ask."""
    try:
        answer = bucket.call("get_bucket_versioning", expect={"unsupported", "missing"})
    except (Told, AccessDenied, BadAnswer, Gone, Refused):
        return "unknown"
    return {"Enabled": "on", "Suspended": "suspended"}.get(str(answer.get("Status", "")), "off")  # type: ignore[return-value]


def object_lock_of(bucket: Bucket) -> State:
    """Whether objects of the bucket can be locked. "unknown" where the store does not know the question or we may not ask."""
    try:
        answer = bucket.call("get_object_lock_configuration", expect={"unsupported", "missing"})
    except Told as told:
        return "off" if told.kind == "missing" else "unknown"
    except (AccessDenied, BadAnswer, Gone, Refused):
        return "unknown"
    return "on" if answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled" else "off"


def turn_versioning_on(bucket: Bucket) -> None:
    """:raises AccessDenied: without s3:PutBucketVersioning. :raises Refused: where the store has none."""
    try:
        bucket.call("put_bucket_versioning", expect={"unsupported"}, VersioningConfiguration={"Status": "Enabled"})
    except Told as told:
        raise Refused(why=f"{bucket.who}: the store keeps no versions", hint="leave --versioning away") from told
