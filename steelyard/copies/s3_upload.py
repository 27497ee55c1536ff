"""Sending one file: a single PUT, or parts of whole pieces in parallel, each from proven bytes, with a checksum of the whole at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from steelyard.config import S3Config
from steelyard.copies.base import ProvenReader
from steelyard.copies.s3_abilities import Abilities
from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_journal import OpenUpload
from steelyard.copies.s3_objects import Seen, crc_text, head
from steelyard.copies.s3_parts import CopyFrom, PartsRun, UploadEnded, body_check, crc_of
from steelyard.copies.s3_proof import BY_CRC, BY_ETAG, by_head, by_ranges
from steelyard.copies.s3_uploads import Uploads
from steelyard.errors import BadAnswer, BadRecord, Corrupt, Refused
from steelyard.manifest import FileEntry
from steelyard.watch import current_watch

STARTS = 3
"""How often an upload that was ended under our hands is begun anew."""


@dataclass(frozen=True)
class Sent:
    """A file that is there: as the store has it, how many bytes went over the wire, and what proved it."""

    seen: Seen
    bytes_sent: int
    resumed: bool
    proof: str


class Sender:
    """Sends files to one bucket; no state of its own but what the store and the records hold."""

    def __init__(self, bucket: Bucket, uploads: Uploads, abilities: Abilities, settings: S3Config) -> None:
        self.bucket = bucket
        self.uploads = uploads
        self.abilities = abilities
        self.settings = settings

    def whole(self, key: str, entry: FileEntry, reader: ProvenReader, over: Seen | None) -> Sent:
        """One PUT. *over*: what stands there now and may be replaced; None: nothing may."""
        watch = current_watch()
        buffer = bytearray(entry.size_bytes)
        with watch.job(f"{entry.path} → {self.bucket.name}", entry.size_bytes) as job:
            for index, (start, _) in enumerate(entry.ranges):
                watch.check()
                reader.read_piece(index, memoryview(buffer)[start:])
            crc = crc_of(buffer)
            if crc != crc_text(entry.crc64nvme):
                raise BadRecord(path=entry.path, why="its pieces are right but its recorded CRC-64 is of other bytes")
            try:
                answer = self.bucket.call(
                    "put_object",
                    expect={"conflict"},
                    Key=key,
                    Body=buffer,
                    **body_check(buffer, crc, self.abilities.checksums),
                    **self.settings_for(entry),
                    **self._condition(over, self.abilities.conditions),
                )
            except Told as told:
                return self._other_writer(key, entry, told)
            watch.advance(job, entry.size_bytes)
        if self.abilities.checksums and answer.get("ChecksumCRC64NVME") == crc:
            etag, version = str(answer.get("ETag", "")).strip('"'), str(answer.get("VersionId", ""))
            return Sent(Seen(key, entry.size_bytes, etag, crc, version=version), entry.size_bytes, False, BY_CRC)
        md5 = hashlib.md5(buffer, usedforsecurity=False).hexdigest()
        return self._proven(key, entry, md5, entry.size_bytes, resumed=False)

    def in_parts(
        self, key: str, entry: FileEntry, reader: ProvenReader, over: Seen | None, part_bytes: int, copies: Mapping[int, CopyFrom]
    ) -> Sent:
        """A multipart upload; goes on with one of ours that is open for this content. *copies*: parts that the store takes from other objects.

        Whatever ends this, the upload stays open and recorded, for the next run.
        """
        sent = 0
        for _ in range(STARTS):
            upload, resumed = self._upload(key, entry, part_bytes)
            run = PartsRun(
                self.bucket, self.uploads, upload, entry, reader, copies if self.abilities.copy_parts else {}, self.abilities.checksums
            )
            try:
                for attempt in (1, 2):
                    # The second time nothing is taken on trust: no copied part, and each listed one is compared with our own bytes.
                    parts = run.send(self.settings.connections, look=resumed or attempt == 2, trust=attempt == 1)
                    if self._complete(upload, entry, parts, over):
                        return self._finish(upload, entry, parts, sent + run.bytes_sent, resumed)
                self.uploads.abort(upload)
                raise BadAnswer(
                    who=self.bucket.who, why=f"the parts of {key} are right, but it says the whole is not; nothing was published"
                )
            except UploadEnded:
                sent += run.bytes_sent
                self.uploads.forget(upload)
                seen = head(self.bucket, key)
                if seen is not None and by_head(entry, seen, None).right:
                    return Sent(seen, sent, resumed, by_head(entry, seen, None).proof)
        raise BadAnswer(
            who=self.bucket.who,
            why=f"the upload of {key} was ended by someone else, {STARTS} times",
            hint="is another program cleaning up there?",
        )

    def _upload(self, key: str, entry: FileEntry, part_bytes: int) -> tuple[OpenUpload, bool]:
        """The upload to go on with, or a new one. Others of ours for the same key are no use to anyone and are aborted."""
        ours, known = self.uploads.open_for(key)
        fitting = [one for one in ours if (one.sha256, one.part_bytes) == (entry.sha256, part_bytes)]
        best = max(fitting, key=lambda one: (len(one.sent), one.begun_at), default=None)
        for other in ours:
            if other is not best:
                self.uploads.abort(other)
        if best is not None:
            self.uploads.adopt(best)
            return best, True
        settings = self.settings_for(entry)
        if self.abilities.checksums:
            settings |= {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        return self.uploads.begin(key, entry.sha256, part_bytes, known, settings), False

    def _complete(self, upload: OpenUpload, entry: FileEntry, parts: list[dict[str, Any]], over: Seen | None) -> bool:
        """Publish it; False when the store says that the whole is not what it should be. :raises UploadEnded: :raises Refused:"""
        whole: dict[str, Any] = (
            {"ChecksumCRC64NVME": crc_text(entry.crc64nvme), "ChecksumType": "FULL_OBJECT"} if self.abilities.checksums else {}
        )
        try:
            self.bucket.call(
                "complete_multipart_upload",
                expect={"no-upload", "conflict", "damaged", "bad-part"},
                Key=upload.key,
                UploadId=upload.upload_id,
                MultipartUpload={"Parts": parts},
                **whole,
                **self._condition(over, self.abilities.complete_conditions),
            )
        except Told as told:
            if told.kind == "no-upload":
                raise UploadEnded from told
            if told.kind == "conflict":
                # Either another writer came first, or the answer to our own first try was lost on the way.
                self._other_writer(upload.key, entry, told)
                self.uploads.abort(upload)
                return True
            return False
        return True

    def _finish(self, upload: OpenUpload, entry: FileEntry, parts: list[dict[str, Any]], sent: int, resumed: bool) -> Sent:
        digests = [str(part["ETag"]).strip('"') for part in parts]
        try:
            joined = hashlib.md5(b"".join(map(bytes.fromhex, digests)), usedforsecurity=False).hexdigest()
        except ValueError:
            joined = ""  # its ETags are no MD5
        result = self._proven(upload.key, entry, f"{joined}-{len(parts)}" if joined else "", sent, resumed=resumed)
        self.uploads.forget(upload)
        return result

    def _proven(self, key: str, entry: FileEntry, md5_etag: str, sent: int, *, resumed: bool) -> Sent:
        """Prove an object just written: by the store's checksum, else by the ETag computed from our bytes, else by reading it back."""
        seen = head(self.bucket, key)
        if seen is None:
            raise BadAnswer(who=self.bucket.who, why=f"{key} was written and is not there")
        says = by_head(entry, seen, None)
        if says.right:
            return Sent(seen, sent, resumed, says.proof)
        if says.right is None and self.abilities.md5_etag and seen.etag == md5_etag:
            return Sent(seen, sent, resumed, BY_ETAG)
        found = by_ranges(self.bucket, seen, entry, self.settings.connections)
        if not found.ok:
            url = f"s3://{self.bucket.name}/{key}"
            raise Corrupt(path=url, why="the store does not give back what was written", ranges=found.bad_ranges)
        return Sent(seen, sent, resumed, found.proof)

    def _other_writer(self, key: str, entry: FileEntry, told: Told) -> Sent:
        """A condition did not hold: fine when what stands there is what we wanted. :raises Refused: when it is not."""
        seen = head(self.bucket, key)
        says = by_head(entry, seen, None) if seen is not None else None
        if seen is not None and says is not None and says.right:
            return Sent(seen, 0, False, says.proof)
        why = f"another program wrote s3://{self.bucket.name}/{key} meanwhile; nothing was overwritten"
        raise Refused(why=why, hint="run the same command again") from told

    def record(self, key: str, data: bytes, crc: str, over: Seen | None, metadata: dict[str, str]) -> None:
        """A small record of ours in one PUT. :raises Refused: when another program wrote it meanwhile."""
        body = bytearray(data)
        wanted = self.settings_for(None) | {"Metadata": metadata}
        # Records are read by people and at every look: never in an archive.
        wanted.pop("StorageClass", None)
        try:
            self.bucket.call(
                "put_object",
                expect={"conflict"},
                Key=key,
                Body=body,
                **body_check(body, crc, self.abilities.checksums),
                **wanted,
                **self._condition(over, self.abilities.conditions),
            )
        except Told as told:
            now = head(self.bucket, key)
            if now is None or now.crc64nvme != crc:
                why = f"another program wrote s3://{self.bucket.name}/{key} meanwhile; nothing was overwritten"
                raise Refused(why=why, hint="run the same command again") from told

    @staticmethod
    def prove_whole(entry: FileEntry, reader: ProvenReader) -> None:
        """Read the file once and prove its SHA-256: for pieces that come from a replica's own manifest. :raises Corrupt: :raises Rotten:"""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(entry.piece_bytes, max(entry.size_bytes, 1))))
        for index in range(len(entry.pieces)):
            current_watch().check()
            digest.update(reader.read_piece(index, buffer))
        if digest.hexdigest() != entry.sha256:
            why = "its pieces hold, but together they are not the SHA-256 that was agreed on"
            raise Corrupt(path=entry.path, why=why, ranges=((0, entry.size_bytes),))

    # --- parameters

    def settings_for(self, entry: FileEntry | None) -> dict[str, Any]:
        """What every new object is given: storage class, encryption, lock and the SHA-256 for a person who looks."""
        days = self.settings.object_lock_days
        wanted: dict[str, Any] = {
            "ObjectLockMode": self.settings.object_lock_mode if days else None,
            "ObjectLockRetainUntilDate": datetime.now(UTC) + timedelta(days=days) if days else None,
            "StorageClass": self.settings.storage_class,
            "ServerSideEncryption": self.settings.sse,
            "SSEKMSKeyId": self.settings.sse_kms_key_id,
            "Metadata": {"steelyard-sha256": entry.sha256} if entry is not None else None,
        }
        return {name: value for name, value in wanted.items() if value}

    @staticmethod
    def _condition(over: Seen | None, holds: bool) -> dict[str, Any]:
        if not holds:
            return {}
        return {"IfNoneMatch": "*"} if over is None else {"IfMatch": f'"{over.etag}"'}
