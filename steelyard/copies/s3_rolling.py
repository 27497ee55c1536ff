"""Which pieces of which object were read back when: so that every byte is, once in so many days, a share each time."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from steelyard.disk import errors_of, make_folder, write_atomically
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import slug

NEVER = 0.0
MOST_LINES = 20_000
"""A file of records longer than this is written anew with one line for each run of pieces."""

Held = tuple[Manifest, FileEntry]


@dataclass(frozen=True)
class Share:
    """Pieces of one file to be read back now, in order."""

    manifest: Manifest
    entry: FileEntry
    pieces: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return sum(_piece_bytes(self.entry, index) for index in self.pieces)


class Rounds:
    """The local records, a file of lines for each snapshot. Lost, the bytes are read once more. Safe from any thread."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / "rounds" / identity
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], dict[str, tuple[str, list[float]]]] = {}

    def note(self, manifest: Manifest, entry: FileEntry, etag: str, pieces: Sequence[int], at: float | None = None) -> None:
        """*pieces* of the object with *etag* were read back and are right; *at*: seconds since 1970, None: now."""
        if not pieces:
            return
        when = time.time() if at is None else at
        with self._lock:
            known = self._load(manifest)
            held, times = known.get(entry.path, ("", []))
            if held != etag or len(times) != len(entry.pieces):
                times = [NEVER] * len(entry.pieces)
            for index in pieces:
                times[index] = when
            known[entry.path] = (etag, times)
            path = self._file(manifest)
            make_folder(path.parent)
            with errors_of(path), path.open("a", encoding="utf-8") as out:
                out.writelines(_line(entry.path, etag, len(times), first, last, when) for first, last in _runs(pieces))

    def times(self, manifest: Manifest, entry: FileEntry, etag: str) -> list[float]:
        """When each piece of a file was last read back, NEVER where it was not: also where the object is another one now."""
        with self._lock:
            held, times = self._load(manifest).get(entry.path, ("", []))
        return list(times) if held == etag and len(times) == len(entry.pieces) else [NEVER] * len(entry.pieces)

    def _file(self, manifest: Manifest) -> Path:
        return self._folder / f"{slug(manifest.model)}-{slug(manifest.commit)}.jsonl"

    def _load(self, manifest: Manifest) -> dict[str, tuple[str, list[float]]]:
        name = (manifest.model, manifest.commit)
        if name in self._known:
            return self._known[name]
        self._known[name] = known = dict[str, tuple[str, list[float]]]()
        path = self._file(manifest)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return known
        for line in lines:
            try:
                one = json.loads(line)
                file, etag, count = str(one["path"]), str(one["etag"]), int(one["of"])
                first, last, at = int(one["from"]), int(one["to"]), float(one["at"])
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a kill
            if not 0 <= first < last <= count <= 1_000_000:
                continue
            held, times = known.get(file, ("", []))
            if held != etag or len(times) != count:
                times = [NEVER] * count
            times[first:last] = [at] * (last - first)
            known[file] = (etag, times)
        if len(lines) > MOST_LINES:
            self._shorten(path, known)
        return known

    @staticmethod
    def _shorten(path: Path, known: Mapping[str, tuple[str, list[float]]]) -> None:
        lines = []
        for file, (etag, times) in known.items():
            for at in sorted(set(times) - {NEVER}):
                lines += [_line(file, etag, len(times), *run, at) for run in _runs([i for i, one in enumerate(times) if one == at])]
        write_atomically(path, "".join(lines).encode())


def _line(path: str, etag: str, count: int, first: int, last: int, at: float) -> str:
    told = {"path": path, "etag": etag, "of": count, "from": first, "to": last, "at": round(at, 3)}
    return json.dumps(told, ensure_ascii=False) + "\n"


def _runs(pieces: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in sorted(pieces):
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _piece_bytes(entry: FileEntry, index: int) -> int:
    return min(entry.piece_bytes, entry.size_bytes - index * entry.piece_bytes)


# --- how much, and which


@dataclass(frozen=True)
class Allowance:
    """How many bytes may be read back now. *total_bytes* lie there; *never_bytes* of them were never read back; *oldest* is the oldest look there was.

    *cycle_days*: in how many days every byte is read, at the pace that the config allows; None: no pace is set.
    """

    now_bytes: int
    total_bytes: int
    never_bytes: int
    oldest: float
    cycle_days: float | None


def allow(held: Sequence[tuple[FileEntry, Sequence[float]]], proof_days: int | None, egress_per_day: int | None, now: float) -> Allowance:
    """The share that is due: total / *proof_days* for each day since the last reading, at most *egress_per_day*, less what was read today (UTC)."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    total = sum(entry.size_bytes for entry, _ in held)
    never = today = 0
    last, oldest = NEVER, math.inf
    for entry, times in held:
        for index, at in enumerate(times):
            size = _piece_bytes(entry, index)
            never += size if at == NEVER else 0
            today += size if at >= midnight else 0
            last, oldest = max(last, at), min(oldest, at)
    daily = total / proof_days if proof_days else math.inf
    days = max(1.0, min(proof_days or 1, (now - last) / 86400)) if last else 1.0
    wanted = math.ceil(daily * days) if proof_days else total
    limit = min(wanted, egress_per_day) if egress_per_day is not None else wanted
    pace = min(daily, egress_per_day if egress_per_day is not None else math.inf)
    cycle = total / pace if total and 0 < pace < math.inf else None
    return Allowance(max(0, limit - today), total, never, 0.0 if oldest == math.inf else oldest, cycle)


def choose(held: Sequence[tuple[Held, Sequence[float]]], most_bytes: int) -> list[Share]:
    """The pieces that were read longest ago, until *most_bytes* are reached; at least one, where there may be any."""
    if most_bytes <= 0:
        return []
    queue = sorted((at, number, index) for number, (_, times) in enumerate(held) for index, at in enumerate(times))
    wanted: dict[int, list[int]] = {}
    taken = 0
    for _, number, index in queue:
        size = _piece_bytes(held[number][0][1], index)
        if taken and taken + size > most_bytes:
            break
        wanted.setdefault(number, []).append(index)
        taken += size
    return [Share(*held[number][0], tuple(sorted(pieces))) for number, pieces in sorted(wanted.items())]
