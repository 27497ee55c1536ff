"""Bad bytes are evidence: set aside with a record of where, when and what, never deleted by a verb that finds them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from steelyard.disk import errors_of, make_folder, write_atomically
from steelyard.errors import Range, Unreadable
from steelyard.names import slug
from steelyard.source import LocalFile


def new_case(folder: Path, what: str) -> Path:
    """A new folder for one case, named by time and *what*."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return make_folder(folder / f"{stamp}-{slug(what)[:60]}-{secrets.token_hex(3)}")


def set_aside(folder: Path, path: Path, why: str) -> Path:
    """Move the file at *path* into a new case below *folder* (same file system) and say why."""
    case = new_case(folder, path.name)
    with errors_of(folder):
        os.replace(path, case / path.name)
    _record(case, path, why, [])
    return case / path.name


def keep_ranges(folder: Path, path: Path, ranges: Sequence[Range], why: str) -> Path:
    """Copy the bad *ranges* of *path* into a new case; what the medium won't give is noted instead."""
    case = new_case(folder, path.name)
    lost: list[str] = []
    with LocalFile(path) as source:
        for start, end in ranges:
            try:
                with errors_of(folder), (case / f"{start}-{end}.bin").open("wb") as out:
                    for at in range(start, min(end, source.size_bytes), 1 << 20):
                        buffer = bytearray(min(1 << 20, end - at, source.size_bytes - at))
                        out.write(memoryview(buffer)[: source.readinto(at, memoryview(buffer))])
            except Unreadable as error:
                lost.append(f"{start}-{end}: {error.facts.get('why')}")
    _record(case, path, why, ranges, lost)
    return case


def _record(case: Path, path: Path, why: str, ranges: Sequence[Range], lost: Sequence[str] = ()) -> None:
    record = {
        "path": str(path),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "why": why,
        "ranges": list(ranges),
        "unreadable": list(lost),
    }
    write_atomically(case / "record.json", json.dumps(record, indent=1).encode())
