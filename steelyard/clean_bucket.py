"""What may go of a replica in a bucket: snapshots beyond what is to be kept, uploads that nobody finishes, old quarantine.

Nothing there shares bytes with anything else: what the store copied for a newer snapshot is an object of its own. A snapshot goes manifest first, so that
it is none any more while its files go one by one; a note in the bucket, written before, lets a later run finish what was stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steelyard.disk import gb
from steelyard.errors import BadRecord, SteelyardError
from steelyard.manifest import Manifest, seal, unseal
from steelyard.pieces import in_threads
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.superseded import beyond_keep
from steelyard.watch import current_watch

if TYPE_CHECKING:
    from steelyard.copies.s3 import S3Replica

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class Going:
    """Something of a bucket that may go: *remove* does it. *bytes*: what lies there."""

    path: str
    bytes: int
    reason: str
    remove: Callable[[], None] = field(repr=False)
    model: str = ""
    commit: str = ""
    objects: bool = True
    """False for an open upload: its parts are gone at once, whatever the bucket keeps."""


def clean_bucket(site: Site, replica: S3Replica, report: Report, *, apply: bool) -> None:
    """Add a row for each thing that may go, or with *apply* went. What the store refuses to delete is an error of its own row."""
    keeps = replica.keeps_versions()
    for one in [*_superseded(site, replica), *_stopped(site, replica), *_uploads(replica), *_quarantine(site, replica)]:
        with report.collecting():
            if apply:
                one.remove()
                log.info("removed %s (%s)", one.path, one.reason)
                if one.commit:
                    site.history.event("clean", one.model, replica.name, "removed", commit=one.commit, bytes=one.bytes)
            reason, freed = one.reason, one.bytes
            if keeps and one.objects and freed:
                # A delete in such a bucket hides an object; its bytes are paid for until the bucket's own rules let them go.
                reason, freed = f"{reason}; the bucket keeps versions, so {gb(freed)} stay until its lifecycle rules remove them", 0
            facts: dict[str, object] = {"action": "removed" if apply else "would-remove", "bytes": freed, "reason": reason}
            if one.commit:
                facts["commit"] = one.commit
            report.rows.append(Row(one.model, "", replica.name, one.path, facts))


# --- snapshots


def _superseded(site: Site, replica: S3Replica) -> Iterator[Going]:
    for model in site.config.models:
        sealed = {commit: datetime.fromtimestamp(sealed_ns / 1e9, UTC) for commit, sealed_ns in replica.sealed(model)}

        def sealed_at(one: Manifest, sealed: dict[str, datetime] = sealed) -> datetime:
            return sealed[one.commit]

        for manifest in beyond_keep(site, replica, model, sealed, sealed_at):
            yield _snapshot(replica, manifest)


def _snapshot(replica: S3Replica, manifest: Manifest) -> Going:
    there = replica.snapshot_listing(manifest)
    folder = replica.layout.folder(manifest.model, manifest.commit)
    note = replica.layout.ours(f"going/{manifest.model}-{manifest.commit}.json")
    # The manifest first: what is left is then no snapshot, and no restore will begin with it.
    keys = [folder + path for path in sorted(there, key=lambda path: (not path.endswith("manifest.json"), path))]

    def remove() -> None:
        body = seal({"model": manifest.model, "commit": manifest.commit, "keys": keys})
        replica.bucket.call("put_object", Key=note, Body=body)
        _delete(replica, keys)
        _delete(replica, [note])
        replica.forget(manifest.model)

    url = replica.layout.url(folder)
    return Going(url, sum(there.values()), "superseded: beyond what is to be kept", remove, manifest.model, manifest.commit)


def _stopped(site: Site, replica: S3Replica) -> Iterator[Going]:
    """Removals that were stopped half-way; one whose snapshot is there again, or is wanted again, is only forgotten."""
    from steelyard.copies.s3_objects import get, listing

    for note, _, _ in list(listing(replica.bucket, replica.layout.ours("going/"))):
        try:
            record = unseal(get(replica.bucket, note) or b"", note)
            model, commit, keys = str(record["model"]), str(record["commit"]), [str(key) for key in record["keys"]]
            folder = replica.layout.folder(model, commit)
        except (BadRecord, KeyError, TypeError, SteelyardError):
            continue  # damaged: what it would name is left alone
        locked = site.locked_model(model) if model in site.config.models else None
        wanted = commit in replica.commits(model) or (locked is not None and locked.commit == commit)
        sizes = {} if wanted else {key: size for key, size, _ in listing(replica.bucket, folder)}
        # Only what the note names: nothing that came since.
        left = [key for key in keys if key in sizes]

        def remove(left: list[str] = left, note: str = note) -> None:
            _delete(replica, left)
            _delete(replica, [note])

        reason = "the note of a removal whose snapshot is wanted again" if wanted else "a removal that was stopped half-way"
        yield Going(replica.layout.url(folder), sum(sizes[key] for key in left), reason, remove, model)


def _delete(replica: S3Replica, keys: list[str]) -> None:
    """The first by itself, then the others, several at once. :raises AccessDenied: where the credentials may not."""

    def one(key: str) -> None:
        replica.bucket.call("delete_object", expect={"missing"}, Key=key)

    for part in (keys[:1], keys[1:]):
        if part:
            in_threads(one, part, threads=min(replica.settings.connections, len(part)), stop=current_watch().stop)


# --- what was never finished, and what was set aside


def _uploads(replica: S3Replica) -> Iterator[Going]:
    """Open uploads of ours; those of others are never named."""
    now = time.time()
    for upload in replica.uploads.ours():
        age = now - datetime.fromisoformat(upload.begun_at).timestamp()
        if age < replica.settings.orphan_age:
            continue
        parts = replica.uploads.parts(upload) or {}
        size = sum(int(one.get("Size", 0)) for one in parts.values())

        def remove(upload=upload) -> None:  # type: ignore[no-untyped-def]
            replica.uploads.abort(upload)

        where = f"{replica.layout.url(upload.key)} (open upload)"
        yield Going(where, size, f"an upload that was never finished, {age / 86400:.0f} days old", remove, objects=False)


def _quarantine(site: Site, replica: S3Replica) -> Iterator[Going]:
    from steelyard.copies.s3_objects import listing

    before = time.time() - site.config.store.keep_quarantine
    stem = replica.layout.ours("quarantine/")
    for key, size, _ in list(listing(replica.bucket, stem)):
        stamp = key.removeprefix(stem).partition("-")[0]
        try:
            at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
        if at < before:

            def remove(key: str = key) -> None:
                _delete(replica, [key])

            yield Going(replica.layout.url(key), size, "in quarantine for longer than keep_quarantine", remove)
