"""`<file>.steelyard.json`: what was proven of a weights file once, for other programs to trust in milliseconds. Void when the bytes change.

It carries a digest of itself, so that damage voids it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.checkpoint.inspection import Inspection
from steelyard.checkpoint.load import LoadReport
from steelyard.checkpoint.signature import signature
from steelyard.disk import write_atomically
from steelyard.errors import BadRecord, Missing, NotLoadable, Unreadable
from steelyard.manifest import seal, unseal

SUFFIX = ".steelyard.json"
FORMAT = 1
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proven, of which bytes, when and how. Times in seconds, sizes in bytes, *created* in UTC (ISO 8601)."""

    file: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    inode: int
    format: str
    tensors: int
    parameters: int
    names_digest: str
    weights_key: str | None
    finite: bool | None
    zero_tensors: int
    trust: str
    torch_version: str
    device: str
    seconds: float
    peak_rss_bytes: int
    created: str
    version: int = FORMAT


def certificate_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def write_certificate(path: Path, inspection: Inspection, report: LoadReport, *, sha256: str, sign: Path | None = None) -> Path:
    """Write the certificate beside *path*, atomically and synced; return where.

    *sha256* is the digest that the caller proved these bytes to have; it is not computed here. *sign* is an Ed25519 private key (PEM).
    :raises NotLoadable: when the report is not ok: only what was proven is certified. :raises UsageError: when the key can't be used.
    """
    if report.verdict != "ok":
        raise NotLoadable(path=path, why=f"its load check says {report.verdict}", reason=report.verdict)
    stat = path.stat()
    if stat.st_size != inspection.size_bytes:
        raise NotLoadable(path=path, why="it changed while it was checked", reason="changed")
    certificate = Certificate(
        file=path.name, sha256=sha256, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino, format=inspection.format,
        tensors=report.tensors, parameters=report.parameters, names_digest=report.names_digest or signature(inspection).digest,
        weights_key=report.weights_key, finite=report.finite, zero_tensors=len(report.zero_tensors), trust=inspection.verdict,
        torch_version=report.torch_version, device=report.device, seconds=round(report.seconds, 3), peak_rss_bytes=report.peak_rss_bytes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    record: dict[str, Any] = asdict(certificate)
    if sign is not None:
        from steelyard.checkpoint import signing

        record["signature"] = signing.sign(record, sign)
    target = certificate_path(path)
    write_atomically(target, seal(record))
    return target


def read_certificate(path: Path, *, deep: bool = False, keys: Sequence[Path] = ()) -> Certificate | None:
    """The certificate of *path* if it has one that still holds, else None: size, mtime or inode differ, or the record is damaged.

    One stat and one small read. Whoever sets a file's times back after writing into it is not noticed; with *deep* the bytes are read and
    their SHA-256 decides, whatever the times say. With *keys* (Ed25519 public keys, PEM) one of them must have signed it.
    :raises Missing: when *path* is not there. :raises UsageError: when a key can't be read.
    """
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise Missing(path=path) from error
    except OSError as error:
        raise Unreadable(path=path, why=error.strerror or str(error)) from error
    try:
        found = parse_certificate(certificate_path(path), keys)
    except (Missing, BadRecord):
        return None
    if found.size_bytes != stat.st_size or found.file != path.name:
        return None
    if deep:
        with path.open("rb") as file:
            return found if hashlib.file_digest(file, "sha256").hexdigest() == found.sha256 else None
    return found if (found.mtime_ns, found.inode) == (stat.st_mtime_ns, stat.st_ino) else None


def parse_certificate(path: Path, keys: Sequence[Path] = ()) -> Certificate:
    """:raises Missing, BadRecord: when there is none, none of this format, or none that one of *keys* signed."""
    try:
        with path.open("rb") as file:
            value: dict[str, Any] = unseal(file.read(MAX_BYTES), path)
    except FileNotFoundError as error:
        raise Missing(path=path) from error
    except OSError as error:
        raise BadRecord(path=path, why=error.strerror or "it can't be read") from error
    names = {field.name for field in fields(Certificate)}
    if value.get("version") != FORMAT or not names <= value.keys():
        raise BadRecord(path=path, why="it is no certificate of this format")
    if keys:
        from steelyard.checkpoint import signing

        signing.check_signature(value, keys, path)
    return Certificate(**{name: value[name] for name in names})
