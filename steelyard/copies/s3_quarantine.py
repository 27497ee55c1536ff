"""Bad bytes of a bucket are evidence: the whole object is set aside in the bucket, bad ranges are saved below our own folder."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_objects import Layout, Seen
from steelyard.copies.s3_reuse import copy_whole
from steelyard.copies.s3_source import S3Source
from steelyard.disk import errors_of, write_atomically
from steelyard.errors import Missing, OtherSide, Range, Refused, Unreadable
from steelyard.pieces import MIB
from steelyard.quarantine import new_case

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long bytes that are known to be bad are waited for [s]."""


def set_aside(bucket: Bucket, layout: Layout, seen: Seen, why: str) -> None:
    """Copy an object that will be replaced to .steelyard/quarantine/ in the bucket. :raises Refused: when the store can't."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    key = layout.ours(f"quarantine/{stamp}-{secrets.token_hex(3)}/{seen.key.rpartition('/')[2]}")
    if not copy_whole(bucket, seen, key, None, conditions=False, settings={}):
        why = f"{layout.url(seen.key)} holds other bytes and can't be set aside, so it was not replaced"
        raise Refused(why=why, hint="move it away by hand")
    log.warning("%s held other bytes; they are now %s (%s)", layout.url(seen.key), layout.url(key), why)


def keep_ranges(bucket: Bucket, layout: Layout, folder: Path, seen: Seen, ranges: Sequence[Range], why: str) -> Path:
    """Save the bad *ranges* of an object in a new case below *folder*; what the store won't give is noted instead."""
    case = new_case(folder, seen.key.rpartition("/")[2])
    lost: list[str] = []
    source = S3Source(bucket, seen, patience_s=PATIENCE_S)
    for start, end in ranges:
        try:
            with errors_of(case), (case / f"{start}-{end}.bin").open("wb") as out:
                for at in range(start, min(end, seen.size_bytes), 8 * MIB):
                    view = memoryview(bytearray(min(8 * MIB, end - at, seen.size_bytes - at)))
                    out.write(view[: source.readinto(at, view)])
        except (OtherSide, Unreadable, Missing) as error:
            lost.append(f"{start}-{end}: {error.message}")
    record = {
        "path": layout.url(seen.key),
        "etag": seen.etag,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "why": why,
        "ranges": list(ranges),
        "unreadable": lost,
    }
    write_atomically(case / "record.json", json.dumps(record, indent=1).encode())
    return case
