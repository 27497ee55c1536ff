"""Open multipart uploads of ours: known again after a kill, by this machine or another, and told apart from everyone else's.

Two records are kept of each. A local file of lines: the intent before the upload is made, its id, then each part that was sent. And a small object in
the bucket with its id, for another machine. An upload that neither names is not ours and is left alone.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_journal import Intent, OpenUpload, UploadJournal, short
from steelyard.copies.s3_objects import Layout, get, listing
from steelyard.errors import BadRecord, OtherSide, Refused
from steelyard.manifest import seal, unseal

INTENT_WINDOW = timedelta(minutes=10)
"""An empty upload begun this close to an intent of ours that has no id yet is the one we were killed in the middle of making."""


class Uploads:
    """The records of all open uploads of one replica. Safe from any thread."""

    def __init__(self, bucket: Bucket, layout: Layout, folder: Path) -> None:
        self.bucket = bucket
        self.layout = layout
        self.journal = UploadJournal(folder / "uploads" / bucket.identity)

    # --- making one

    def begin(self, key: str, sha256: str, part_bytes: int, known: set[str], settings: dict[str, Any]) -> OpenUpload:
        """Create an upload; from the line before to the line after it, a kill leaves nothing that we would not find again.

        *known*: ids of the uploads that were open for *key* before.
        """
        intent = Intent(key, sha256, part_bytes, datetime.now(UTC).isoformat(timespec="seconds"), tuple(sorted(known)))
        self.journal.intend(intent)
        answer = self.bucket.call("create_multipart_upload", Key=key, **settings)
        upload = intent.made(str(answer["UploadId"]))
        self.journal.made(upload)
        if answer["tried_again"]:
            # The answer to an earlier try may have been lost after the store had made an upload.
            for other in self._made_by(replace(intent, known=(*known, upload.upload_id)), self._listed(key)):
                self.abort(other)
        self._publish(upload)
        return upload

    def adopt(self, upload: OpenUpload) -> None:
        """Go on with an upload that open_for() found: see that both records name it."""
        self.journal.adopt(upload)
        self._publish(upload)

    def _publish(self, upload: OpenUpload) -> None:
        """Write its record into the bucket, unless it is there."""
        if not upload.in_bucket:
            record = {name: getattr(upload, name) for name in ("key", "upload_id", "sha256", "part_bytes", "begun_at")}
            self.bucket.call("put_object", Key=self._record_key(upload), Body=seal(record))
            upload.in_bucket = True

    def note(self, upload: OpenUpload, number: int, etag: str, crc: str) -> None:
        """A part was sent from proven bytes."""
        self.journal.sent(upload, number, etag, crc)

    # --- ending one

    def forget(self, upload: OpenUpload) -> None:
        """It is completed or aborted: remove its records. Where we may not delete, the bucket's stays; it names an upload that is not there any more."""
        with contextlib.suppress(Told, OtherSide, Refused):
            self.bucket.call("delete_object", expect={"missing"}, Key=self._record_key(upload))
        self.journal.end(upload)

    def clear(self, key: str) -> None:
        """The object is there: what this machine still has open or recorded for it is of no use. Asks nothing where nothing is recorded."""
        if self.journal.has(key):
            for upload in self.open_for(key)[0]:
                self.abort(upload)
            self.journal.drop(key)

    def abort(self, upload: OpenUpload) -> None:
        """End it and free its parts. :raises OtherSide:"""
        with contextlib.suppress(Told):
            self.bucket.call("abort_multipart_upload", expect={"no-upload"}, Key=upload.key, UploadId=upload.upload_id)
        self.forget(upload)

    # --- finding them again

    def open_for(self, key: str) -> tuple[list[OpenUpload], set[str]]:
        """Our open uploads for *key*, and the ids of all open ones, whoever's. Records of uploads that ended are removed."""
        listed = self._listed(key)
        ours = {one.upload_id: one for one in self._recorded(self._record_stem(key))}
        local = self.journal.read(key)
        if local is not None:
            intent, upload = local
            if upload is not None:
                upload.in_bucket = upload.upload_id in ours
                ours[upload.upload_id] = upload
            else:
                for one in self._made_by(intent, listed):
                    ours[one.upload_id] = one
        if listed is None:  # the store can't say: ListParts will
            return list(ours.values()), set(ours)
        for upload_id in ours.keys() - listed.keys():
            # A listing may lag behind; the upload itself does not.
            if self.parts(ours[upload_id]) is None:
                self.forget(ours.pop(upload_id))
        return list(ours.values()), set(listed)

    def ours(self) -> list[OpenUpload]:
        """Every upload that a record of ours names, in the bucket or on this machine."""
        found = {one.upload_id: one for one in self._recorded(self.layout.ours("uploads/"))}
        for upload in self.journal.uploads():
            found.setdefault(upload.upload_id, upload)
        return list(found.values())

    def sweep(self, older_than_s: float) -> int:
        """Abort our open uploads that were begun longer ago than *older_than_s*; how many. Others' are left."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        aborted = 0
        for upload in self.ours():
            if datetime.fromisoformat(upload.begun_at) <= before:
                self.abort(upload)
                aborted += 1
        return aborted

    def _listed(self, key: str) -> dict[str, datetime] | None:
        """Open uploads for exactly *key*: id -> when they were begun; None where the store does not tell."""
        found: dict[str, datetime] = {}
        more: dict[str, Any] = {}
        while True:
            try:
                answer = self.bucket.call("list_multipart_uploads", expect={"unsupported", "missing"}, Prefix=key, **more)
            except Told:
                return None
            found.update({one["UploadId"]: one["Initiated"] for one in answer.get("Uploads", ()) if one["Key"] == key})
            after = {"KeyMarker": answer.get("NextKeyMarker", ""), "UploadIdMarker": answer.get("NextUploadIdMarker", "")}
            if not answer.get("IsTruncated") or not after["KeyMarker"] or after == more:
                return found
            more = after

    def _made_by(self, intent: Intent, listed: dict[str, datetime] | None) -> list[OpenUpload]:
        """The upload that an intent of ours made just before we were killed: new since then, begun then, and without a part."""
        found = []
        at = datetime.fromisoformat(intent.at)
        for upload_id, begun in (listed or {}).items():
            if upload_id in intent.known or abs(begun - at) > INTENT_WINDOW:
                continue
            upload = intent.made(upload_id)
            if not self.parts(upload):
                found.append(upload)
        return found

    def parts(self, upload: OpenUpload) -> dict[int, dict[str, Any]] | None:
        """What the store holds of it: number -> {"ETag", "Size", "ChecksumCRC64NVME"?}; None when it is not open any more."""
        found: dict[int, dict[str, Any]] = {}
        marker = 0
        while True:
            try:
                answer = self.bucket.call(
                    "list_parts", expect={"no-upload", "missing"}, Key=upload.key, UploadId=upload.upload_id, PartNumberMarker=marker
                )
            except Told:
                return None
            for one in answer.get("Parts", ()):
                found[int(one["PartNumber"])] = one
            after = int(answer.get("NextPartNumberMarker") or 0)
            if not answer.get("IsTruncated") or after <= marker:
                return found
            marker = after

    def _recorded(self, prefix: str) -> list[OpenUpload]:
        found = []
        for key, _, _ in list(listing(self.bucket, prefix)):
            data = get(self.bucket, key)
            try:
                record = unseal(data or b"", key)
                one = OpenUpload(
                    record["key"],
                    record["upload_id"],
                    record["sha256"],
                    int(record["part_bytes"]),
                    begun_at=record["begun_at"],
                    in_bucket=True,
                )
                datetime.fromisoformat(one.begun_at)
            except (BadRecord, KeyError, TypeError, ValueError):
                continue  # not one of ours, or damaged: what it would name is then left alone
            if self._record_key(one) == key:
                found.append(one)
        return found

    def _record_stem(self, key: str) -> str:
        return self.layout.ours(f"uploads/{short(key)}-")

    def _record_key(self, upload: OpenUpload) -> str:
        return f"{self._record_stem(upload.key)}{short(upload.upload_id)}.json"
