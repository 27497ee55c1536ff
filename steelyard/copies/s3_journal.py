"""The local record of an open upload, a file of lines for each key: the intent before it is made, its id, then each part that was sent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from steelyard.disk import errors_of, make_folder, write_atomically


@dataclass
class OpenUpload:
    """An upload of ours. *sent*: part number -> (ETag, CRC-64 as S3 text) of parts sent from proven bytes by this machine."""

    key: str
    upload_id: str
    sha256: str
    part_bytes: int
    sent: dict[int, tuple[str, str]] = field(default_factory=dict)
    begun_at: str = ""
    in_bucket: bool = False
    """Its record is in the bucket, so that another machine finds it."""


@dataclass(frozen=True)
class Intent:
    """That an upload is about to be made. *known*: the uploads that were open for the key before; *at*: ISO 8601, UTC."""

    key: str
    sha256: str
    part_bytes: int
    at: str
    known: tuple[str, ...] = ()

    def made(self, upload_id: str) -> OpenUpload:
        return OpenUpload(self.key, upload_id, self.sha256, self.part_bytes, begun_at=self.at)


class UploadJournal:
    """The files in *folder*. Lines torn by a kill are passed over: a part they would name is compared again. Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def intend(self, intent: Intent) -> None:
        """Begin the file of a key anew."""
        make_folder(self.folder)
        write_atomically(self._file(intent.key), json.dumps({"intent": asdict(intent)}).encode() + b"\n")

    def made(self, upload: OpenUpload) -> None:
        self._append(upload.key, {"upload_id": upload.upload_id})

    def sent(self, upload: OpenUpload, number: int, etag: str, crc: str) -> None:
        """A part was sent from proven bytes."""
        with self._lock:
            upload.sent[number] = (etag, crc)
        self._append(upload.key, {"part": number, "etag": etag, "crc": crc})

    def adopt(self, upload: OpenUpload) -> None:
        """Go on with an upload that another machine began."""
        local = self.read(upload.key)
        if local is None or local[1] is None or local[1].upload_id != upload.upload_id:
            self.intend(Intent(upload.key, upload.sha256, upload.part_bytes, upload.begun_at))
            self.made(upload)

    def end(self, upload: OpenUpload) -> None:
        """Remove the file, unless it is another upload's."""
        local = self.read(upload.key)
        if local is None or local[1] is None or local[1].upload_id == upload.upload_id:
            self.drop(upload.key)

    def has(self, key: str) -> bool:
        return self._file(key).exists()

    def drop(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def uploads(self) -> Iterator[OpenUpload]:
        """Every upload that is recorded here."""
        for path in sorted(self.folder.glob("*.jsonl")):
            local = self._parse(path)
            if local is not None and local[1] is not None:
                yield local[1]

    def read(self, key: str) -> tuple[Intent, OpenUpload | None] | None:
        """The intent for a key and, once it was made, the upload; None where nothing usable is recorded."""
        return self._parse(self._file(key))

    def _parse(self, path: Path) -> tuple[Intent, OpenUpload | None] | None:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            told = json.loads(lines[0])["intent"]
            intent = Intent(str(told["key"]), str(told["sha256"]), int(told["part_bytes"]), str(told["at"]), tuple(told["known"]))
            datetime.fromisoformat(intent.at)
            if path != self._file(intent.key):
                return None
            upload: OpenUpload | None = None
            for line in lines[1:]:
                try:
                    told = json.loads(line)
                except ValueError:
                    continue
                if "upload_id" in told:
                    upload = intent.made(str(told["upload_id"]))
                elif upload is not None:
                    upload.sent[int(told["part"])] = (str(told["etag"]), str(told["crc"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return intent, upload

    def _append(self, key: str, line: dict[str, Any]) -> None:
        path = self._file(key)
        with self._lock, errors_of(path), path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def _file(self, key: str) -> Path:
        return self.folder / f"{short(key)}.jsonl"


def short(text: str) -> str:
    """A name for what is too long or too odd to be one."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
