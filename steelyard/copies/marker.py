"""The marker on a drive that says which drive it is, and the shelf: the ids we expect under one replica's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.disk import read_regular, write_atomically
from steelyard.errors import BadRecord
from steelyard.manifest import seal, unseal, utc_now
from steelyard.names import OURS

MARKER = "target.json"
VERSION = 1


@dataclass(frozen=True)
class Marker:
    """What lies on the drive. *ident* is random; *abilities* are those found when it was last probed."""

    ident: str
    name: str
    made_at: str = field(default_factory=utc_now)
    abilities: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> bytes:
        record = {"id": self.ident, "name": self.name, "made_at": self.made_at, "abilities": dict(self.abilities)}
        return seal({"steelyard_target": VERSION, **record})

    @classmethod
    def parse(cls, data: bytes, where: object) -> Marker:
        """:raises BadRecord:"""
        record = unseal(data, where)
        try:
            return cls(str(record["id"]), str(record["name"]), str(record["made_at"]), dict(record["abilities"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecord(path=str(where), why="it is not a marker") from error


def read_marker(root: Path) -> Marker | None:
    """The marker of the drive that *root* lies on. :raises BadRecord: when it is damaged."""
    path = root / OURS / MARKER
    try:
        return Marker.parse(read_regular(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadRecord(path=str(path), why=error.strerror or "it can't be read") from error


class Shelf:
    """The ids of a replica's drives, as remembered on our side: id -> when it was first marked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self) -> dict[str, str]:
        """In the order they were marked. :raises BadRecord: when the file is damaged; it is not taken for empty."""
        try:
            record = unseal(read_regular(self.path), self.path)
            return {str(one["id"]): str(one["marked_at"]) for one in record["drives"]}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, KeyError, TypeError) as error:
            raise BadRecord(
                path=str(self.path), why="it can't be read", hint=f"remove it and run: steelyard target {self.path.stem}"
            ) from error

    def labels(self) -> dict[str, str]:
        """What people call each drive, by id; "" where nobody said. :raises BadRecord:"""
        known = self.known()
        try:
            drives = unseal(read_regular(self.path), self.path)["drives"] if known else []
        except OSError:
            drives = []
        return dict.fromkeys(known, "") | {str(one["id"]): str(one.get("label") or "") for one in drives}

    def remember(self, ident: str, label: str | None = None) -> None:
        known, labels = self.known(), self.labels()
        if label is not None:
            labels[ident] = label
        self._write({**known, ident: known.get(ident, utc_now())}, labels)

    def forget(self, ident: str) -> None:
        self._write({one: at for one, at in self.known().items() if one != ident}, self.labels())

    def _write(self, drives: Mapping[str, str], labels: Mapping[str, str]) -> None:
        rows = [{"id": ident, "marked_at": at, "label": labels.get(ident, "")} for ident, at in drives.items()]
        write_atomically(self.path, seal({"steelyard_targets": VERSION, "drives": rows}))
