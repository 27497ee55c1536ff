"""The records beside a snapshot in a bucket: read, listed, and written with the manifest last."""

from __future__ import annotations

import shlex
import time

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_objects import Layout, get, head, listing
from steelyard.copies.s3_parts import crc_of
from steelyard.copies.s3_upload import Sender
from steelyard.errors import BadRecord
from steelyard.manifest import Manifest
from steelyard.published import is_commit
from steelyard.records import MANIFEST, records

# A repo may have a manifest.json of its own; ours then has the longer name, and is looked for first.
NAMES = (f"steelyard-{MANIFEST}", MANIFEST)


def read_manifest(bucket: Bucket, layout: Layout, model: str, commit: str) -> Manifest | None:
    """The manifest of a snapshot, None where there is none. :raises BadRecord: when it is damaged or another snapshot's."""
    problem: BadRecord | None = None
    for name in NAMES:
        key = layout.folder(model, commit) + name
        data = get(bucket, key)
        if data is None:
            continue
        try:
            manifest = Manifest.parse(data, layout.url(key))
        except BadRecord as error:
            problem = error
        else:
            if (manifest.model, manifest.commit) == (model, commit):
                return manifest
            problem = BadRecord(path=layout.url(key), why="it is of another model or commit")
    if problem is not None:
        raise problem
    return None


def list_sealed(bucket: Bucket, layout: Layout, model: str) -> list[tuple[str, int]]:
    """Commits of sealed snapshots and when that was [ns since 1970], oldest first.

    It stands in the manifest's metadata; S3's own times are whole seconds.
    """
    found = []
    for prefix, size, _ in listing(bucket, layout.models(model), delimiter="/"):
        commit = prefix.rstrip("/").rpartition("/")[2]
        if size >= 0 or not is_commit(commit):
            continue
        for name in NAMES:
            seen = head(bucket, prefix + name)
            if seen is not None:
                found.append((seen.sealed_ns, commit))
                break
    return [(commit, at) for at, commit in sorted(found)]


def write_records(sender: Sender, layout: Layout, manifest: Manifest) -> None:
    """Write what has changed of SHA256SUMS, RESTORE.txt and, last, the manifest."""
    bucket = sender.bucket
    folder = layout.folder(manifest.model, manifest.commit)
    at = f" --endpoint-url {shlex.quote(bucket.endpoint)}" if bucket.endpoint else ""
    line = f"aws s3 cp --recursive {shlex.quote(layout.url(folder))} /where/you/want/it{at}"
    for name, data in records(manifest, line, "/where/you/want/it").items():
        crc = crc_of(bytearray(data))
        over = head(bucket, folder + name)
        same = over is not None and (over.crc64nvme == crc or (not over.crc64nvme and get(bucket, folder + name) == data))
        if not same:
            sender.record(folder + name, data, crc, over, {"steelyard-sealed-ns": str(time.time_ns())})
