"""The settings of a replica in a bucket."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from steelyard.errors import UnsafeName
from steelyard.names import check_name
from steelyard.pace import Window
from steelyard.units import AbsolutePath, Duration, Part, Rate, Size, Url, Wrong

_BUCKET = re.compile(r"[A-Za-z0-9.\-_]{1,255}|arn:[^\s/]+(?:[/:][A-Za-z0-9.\-_]+)*")
"""What boto3 takes for the name of a bucket, or of an access point."""


def _bucket(name: str) -> str:
    if not _BUCKET.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a bucket")
    return name


UploadWindow = Annotated[Window, BeforeValidator(Window.parse)]


class S3Config(Part):
    kind: Literal["s3"]
    bucket: Annotated[str, Field(min_length=1), AfterValidator(_bucket)]
    prefix: str = ""
    endpoint_url: Url | None = None
    region: str | None = None
    path_style: bool | None = None
    """Address the bucket in the path; by default where an endpoint_url is given."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Snapshots that stay; the newest verified one and the locked one stay in any case. See steelyard clean."""
    keep_daily: Annotated[int, Field(ge=0)] = 0
    keep_weekly: Annotated[int, Field(ge=0)] = 0
    keep_monthly: Annotated[int, Field(ge=0)] = 0
    max_age: Duration | None = None
    """Longest time since the last good backup before an absent drive is called overdue."""
    connections: Annotated[int, Field(ge=1, le=64)] = 4
    part_size: Size = 16 * 1024**2
    storage_class: str | None = None
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None
    ca_bundle: AbsolutePath | None = None
    request_payer: Literal["requester"] | None = None
    """Say with each request that we pay for it: for a bucket whose owner does not."""
    object_lock_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Nobody can delete a version of what we write before this many days have gone; the bucket must have been made with object lock."""
    object_lock_mode: Literal["GOVERNANCE", "COMPLIANCE"] = "GOVERNANCE"
    """GOVERNANCE: who may s3:BypassGovernanceRetention still can. COMPLIANCE: nobody can, not even the account's owner."""
    archive_days: Annotated[int, Field(ge=1, le=365)] = 7
    """How long an object that was asked back out of an archive stays readable [days]."""
    archive_tier: Literal["Standard", "Bulk", "Expedited"] = "Standard"
    """How fast it is asked back; Bulk is cheapest, Expedited is not to be had for DEEP_ARCHIVE."""
    proof_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """`scrub` reads a share of the bytes back each time, so that each is read once in this many days; without it whole files, oldest proof first."""
    egress_per_day: Size | None = None
    """`scrub` reads back no more than this in a day (UTC)."""
    orphan_age: Duration = 7 * 86400.0
    """An upload of ours that was begun longer ago and never finished is ended: its parts cost money and nobody sees them."""
    bandwidth: Rate | None = None
    """Longest pace of uploads and of reading back for a proof [bytes/s]; a restore takes what the line gives."""
    window: UploadWindow | None = None
    """When scheduled rounds may use the line, "22:00-06:00" in local time."""

    @model_validator(mode="after")
    def _confined(self) -> Self:
        if self.prefix:
            try:
                check_name(self.prefix.strip("/"))
            except UnsafeName as error:
                raise Wrong("prefix", f"{self.prefix!r} can't be used: {error.facts['why']}") from error
        if self.storage_class == "DEEP_ARCHIVE" and self.archive_tier == "Expedited":
            raise Wrong("archive_tier", '"Expedited" is not to be had for DEEP_ARCHIVE; write Standard or Bulk')
        if self.sse_kms_key_id and self.sse != "aws:kms":
            raise Wrong("sse_kms_key_id", 'needs sse = "aws:kms"')
        return self
