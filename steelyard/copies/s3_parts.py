"""The parts of an upload: whole pieces, sent from proven bytes, taken over from an earlier run, or copied inside the store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.copies.base import ProvenReader
from steelyard.copies.s3_client import Bucket, md5_of
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_journal import OpenUpload
from steelyard.copies.s3_objects import Seen, crc_text
from steelyard.copies.s3_uploads import Uploads
from steelyard.manifest import FileEntry
from steelyard.pieces import in_threads
from steelyard.watch import Watch, current_watch

MIN_PART_BYTES = 5 << 20
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Part:
    """Part *number* (from 1): the bytes from *start* to *end*, the pieces from *first* to before *last*."""

    number: int
    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class CopyFrom:
    """Where the store itself has a part's bytes: from *start* of *seen*."""

    seen: Seen
    start: int


def part_size(entry: FileEntry, wanted_bytes: int) -> int:
    """Bytes of a part: *wanted_bytes* rounded up to whole pieces, at least 5 MiB, and more where there would be over 10,000 parts."""
    pieces = max(1, -(-max(wanted_bytes, MIN_PART_BYTES) // entry.piece_bytes))
    return max(pieces, -(-len(entry.pieces) // MAX_PARTS)) * entry.piece_bytes


def parts_of(entry: FileEntry, part_bytes: int) -> list[Part]:
    each = part_bytes // entry.piece_bytes
    return [
        Part(number, start, min(start + part_bytes, entry.size_bytes), (number - 1) * each, min(number * each, len(entry.pieces)))
        for number, start in enumerate(range(0, entry.size_bytes, part_bytes), 1)
    ]


class UploadEnded(Exception):
    """Our upload is not open any more; never leaves the S3 copy."""


class PartsRun:
    """One pass over the parts of an upload, several at once; memory is one part a connection. *checksums*: the store checks CRC-64s."""

    def __init__(
        self,
        bucket: Bucket,
        uploads: Uploads,
        upload: OpenUpload,
        entry: FileEntry,
        reader: ProvenReader,
        copies: Mapping[int, CopyFrom],
        checksums: bool,
    ) -> None:
        self.bucket = bucket
        self.uploads = uploads
        self.upload = upload
        self.entry = entry
        self.reader = reader
        self.copies = copies
        self.checksums = checksums
        self.bytes_sent = 0
        self._lock = threading.Lock()
        self._buffers = threading.local()

    def send(self, threads: int, *, look: bool, trust: bool) -> list[dict[str, Any]]:
        """Have every part there and return them as CompleteMultipartUpload wants them. *look*: at what is there already.

        :raises Rotten: :raises UploadEnded:
        """
        there = self.uploads.parts(self.upload) if look else {}
        if there is None:
            raise UploadEnded
        watch = current_watch()
        done: dict[int, dict[str, Any]] = {}
        with watch.job(f"{self.entry.path} → {self.bucket.name}", self.entry.size_bytes) as job:

            def one(part: Part) -> None:
                self.bucket.check_hours()
                try:
                    done[part.number] = self._one(part, there.get(part.number), watch, trust=trust)
                except Told as told:
                    raise UploadEnded from told
                watch.advance(job, part.end - part.start)

            parts = parts_of(self.entry, self.upload.part_bytes)
            in_threads(one, parts, threads=min(threads, len(parts)), stop=watch.stop)
        return [done[number] for number in sorted(done)]

    def _one(self, part: Part, there: dict[str, Any] | None, watch: Watch, *, trust: bool) -> dict[str, Any]:
        """:raises Told: "no-upload" when it is not open any more."""
        fits = there is not None and there.get("Size") == part.end - part.start
        etag = str(there["ETag"]).strip('"') if there is not None else ""
        known = self.upload.sent.get(part.number)
        if trust and fits and known is not None and known[0] == etag:
            return self._told(part, etag, known[1])
        if trust and part.number in self.copies:
            copied = self._copy(part, self.copies[part.number], watch)
            if copied is not None:
                return copied
        body = self._read(part)
        crc = crc_of(body)
        if (
            fits
            and there is not None
            and (there.get("ChecksumCRC64NVME") == crc or hashlib.md5(body, usedforsecurity=False).hexdigest() == etag)
        ):
            self.uploads.note(self.upload, part.number, etag, crc)
            return self._told(part, etag, crc)
        answer = self.bucket.call(
            "upload_part",
            expect={"no-upload"},
            watch=watch,
            Key=self.upload.key,
            UploadId=self.upload.upload_id,
            PartNumber=part.number,
            Body=body,
            **body_check(body, crc, self.checksums),
        )
        with self._lock:
            self.bytes_sent += len(body)
        etag = str(answer["ETag"]).strip('"')
        self.uploads.note(self.upload, part.number, etag, crc)
        return self._told(part, etag, crc)

    def _told(self, part: Part, etag: str, crc: str) -> dict[str, Any]:
        return {"PartNumber": part.number, "ETag": f'"{etag}"', **({"ChecksumCRC64NVME": crc} if self.checksums and crc else {})}

    def _copy(self, part: Part, source: CopyFrom, watch: Watch) -> dict[str, Any] | None:
        """Let the store take the part from another object; None when it can't, and the bytes are sent instead."""
        last = source.start + part.end - part.start - 1
        version = {"VersionId": source.seen.version} if source.seen.version else {}
        try:
            answer = self.bucket.call(
                "upload_part_copy",
                expect={"missing", "conflict", "unsupported", "range", "bad-part", "archived", "no-upload"},
                watch=watch,
                Key=self.upload.key,
                UploadId=self.upload.upload_id,
                PartNumber=part.number,
                CopySource={"Bucket": self.bucket.name, "Key": source.seen.key, **version},
                CopySourceRange=f"bytes={source.start}-{last}",
                CopySourceIfMatch=f'"{source.seen.etag}"',
            )
        except Told as told:
            if told.kind == "no-upload":
                raise
            return None
        result = answer["CopyPartResult"]
        return self._told(part, str(result["ETag"]).strip('"'), str(result.get("ChecksumCRC64NVME", "")))

    def _read(self, part: Part) -> bytearray:
        """The proven bytes of a part, in this thread's buffer."""
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) != part.end - part.start:
            buffer = self._buffers.buffer = bytearray(part.end - part.start)
        for index in range(part.first, part.last):
            self.reader.read_piece(index, memoryview(buffer)[index * self.entry.piece_bytes - part.start :])
        return buffer


def crc_of(data: bytearray) -> str:
    from awscrt.checksums import crc64nvme

    return crc_text(crc64nvme(data))


def body_check(body: bytearray, crc: str, checksums: bool) -> dict[str, Any]:
    """The checksum that the store is to check a body by: the CRC-64 where it knows it, else the MD5."""
    if checksums:
        return {"ChecksumCRC64NVME": crc}
    return {"ContentMD5": md5_of(body)}
