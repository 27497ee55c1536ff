"""Proof of an object: by what the store says of it, without its bytes; else by reading it in ranges, a piece at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.copies.base import Finding
from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_memory import Remembered
from steelyard.copies.s3_objects import Seen, crc_text, head
from steelyard.copies.s3_source import S3Source
from steelyard.errors import Range, Unreachable
from steelyard.manifest import FileEntry
from steelyard.pace import Throttle
from steelyard.pieces import in_threads, merge_ranges
from steelyard.watch import current_watch

BY_CRC, BY_SHA256, BY_ETAG, BY_RANGES = (
    "crc64nvme by HEAD",
    "sha256 by HEAD",
    "ETag by HEAD, as it was when proven",
    "pieces by ranged reads",
)
ONCE_LOST_S = 5.0
"""When one piece can't be had though the store answers, how long the others are waited for [s]."""


@dataclass(frozen=True)
class HeadSays:
    """What a HEAD proves: *right* is None where it can't tell."""

    right: bool | None
    proof: str = ""
    why: str = ""


def by_head(entry: FileEntry, seen: Seen, known: Remembered | None) -> HeadSays:
    """Compare what the store says with the manifest. It rests on the store's own checksum: bytes that rotted below that are seen by a deep look only."""
    if seen.size_bytes != entry.size_bytes:
        return HeadSays(False, "size by HEAD", f"it has {seen.size_bytes} bytes, {entry.size_bytes} are right")
    if seen.crc64nvme:
        return HeadSays(seen.crc64nvme == crc_text(entry.crc64nvme), BY_CRC, "the store's CRC-64 of it is another")
    if seen.sha256:
        return HeadSays(seen.sha256 == entry.sha256, BY_SHA256, "the store's SHA-256 of it is another")
    if known is not None and seen.etag == known.etag:
        return HeadSays(True, BY_ETAG)
    return HeadSays(None)


def by_stat(entry: FileEntry, now: tuple[int, str] | None, recorded: Finding | None) -> Finding:
    """Presence, size and ETag (*now*: size and stat; None: not there) against the last look; never better than that look's verdict."""
    if now is None:
        return Finding("missing", proof="presence")
    size, stat = now
    if size != entry.size_bytes:
        first = size // entry.piece_bytes * entry.piece_bytes if size < entry.size_bytes else entry.size_bytes
        why = f"it has {size} bytes, {entry.size_bytes} are right"
        return Finding("corrupt", ((first, max(size, entry.size_bytes)),), "size", why, stat=stat)
    # A listing knows no version; size and ETag are compared.
    if recorded is None or recorded.stat.rsplit(":", 1)[0] != stat.rsplit(":", 1)[0]:
        why = "never proven here" if recorded is None else "its ETag changed since it was last proven"
        return Finding("unverified", proof="size and ETag", why=why, stat=stat)
    return Finding(recorded.verdict, recorded.bad_ranges, "size and ETag", "size and ETag are as at the last proof", stat=recorded.stat)


def by_ranges(
    bucket: Bucket, seen: Seen, entry: FileEntry, threads: int, pieces: Sequence[int] | None = None, throttle: Throttle | None = None
) -> Finding:
    """Read every piece, or just *pieces*, and prove it, several at once. A piece that does not verify was read twice.

    :raises OtherSide: when the store is away or the object changes meanwhile; a piece that alone can't be had is a finding.
    """
    watch = current_watch()
    bad: list[Range] = []
    lost: list[Range] = []
    counted: list[int] = []
    pace = throttle or bucket.throttle
    source = S3Source(bucket, seen, entry, watch, throttle=pace)
    hasty = S3Source(bucket, seen, entry, watch, patience_s=min(ONCE_LOST_S, bucket.patience_s), throttle=pace)
    local = threading.local()
    ranges = entry.ranges
    wanted = range(len(ranges)) if pieces is None else pieces
    total = sum(ranges[index][1] - ranges[index][0] for index in wanted)
    with watch.job(f"read back {entry.path}", total) as job:

        def look(index: int) -> None:
            start, end = ranges[index]
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(min(entry.piece_bytes, entry.size_bytes)))
            view = local.buffer[: end - start]
            try:
                got, digest = (hasty if lost else source).read_digested(start, view)
            except Unreachable:
                head(bucket, seen.key, watch)  # is it the store, or these bytes alone?
                lost.append((start, end))
            else:
                counted.append(got)
                if got < len(view) or digest != entry.pieces[index]:
                    bad.append((start, end))
            watch.advance(job, end - start)

        in_threads(look, wanted, threads=max(1, min(threads, len(wanted))), stop=watch.stop)
    read = sum(counted)
    if seen.size_bytes > entry.size_bytes:
        bad.append((entry.size_bytes, seen.size_bytes))
    if bad:
        found = merge_ranges([*bad, *lost])
        why = f"{sum(end - start for start, end in found)} bytes in {len(found)} range{'s' if len(found) > 1 else ''} differ from the recorded digests"
        return Finding("corrupt", found, BY_RANGES, why, read, seen.stat)
    if lost:
        return Finding("unreadable", merge_ranges(lost), BY_RANGES, "the store answers, but not with these bytes", read, seen.stat)
    return Finding("ok", proof=BY_RANGES, bytes_read=read, stat=seen.stat)
