"""A place that holds whole copies, whatever its kind: stat, judge, read a range, bring a file in, mend pieces, list."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from steelyard.direct import aligned_buffer
from steelyard.errors import Corrupt, Range, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_range
from steelyard.source import READ_BYTES, ByteSource

CopyKind = Literal["store", "hub-cache", "mount", "s3", "hub"]
Verdict = Literal["ok", "missing", "corrupt", "unreadable", "stray", "stale", "unverified"]
Depth = Literal["quick", "default", "deep"]


@dataclass(frozen=True)
class Look:
    """How to look at a copy: *quick* at the recorded state only, *default* by the cheapest real proof, *deep* by reading every byte back."""

    depth: Depth = "default"
    cold: bool | None = None
    """Read from the medium and not from memory; None: as the kind of copy has it (a replica yes, the store no)."""
    threads: int = 0
    """How many may hash what lies in memory; 0: one a core."""
    wake: bool = False
    """Ask bytes that lie in an archive back, to read them later: it costs money, so only where somebody asked for just this copy."""


@dataclass(frozen=True)
class Finding:
    """What a look at one file found. *proof* names what the verdict rests on; *stat* is what identifies the file as it was judged."""

    verdict: Verdict
    bad_ranges: tuple[Range, ...] = ()
    proof: str = ""
    why: str = ""
    bytes_read: int = 0
    stat: str = ""
    waits: bool = False
    """Nothing was found out: its bytes were asked back out of an archive and are not there yet."""

    @property
    def ok(self) -> bool:
        return self.verdict == "ok"


@dataclass(frozen=True)
class Brought:
    """A file that was brought into a copy and proven there."""

    action: Literal["copied", "resumed", "unchanged"]
    bytes_written: int
    how: str = ""
    """Where no bytes were written because the copy had them: "hard link" or "reflink"."""


class Rotten(Exception):
    """No candidate has a piece that verifies; never leaves copies and the verbs."""

    def __init__(self, where: Range, tried: Sequence[str], errors: Sequence[SteelyardError] = ()) -> None:
        super().__init__(f"bytes {where[0]} to {where[1]} are good in none of {', '.join(tried) or 'no copy'}")
        self.where = where
        self.tried = tuple(tried)
        self.errors = tuple(errors)


@dataclass
class ProvenReader:
    """Pieces of one file, each from the first candidate whose piece verifies. What it returns is proven, whatever the candidates hold.

    *candidates*: name of the copy -> its bytes, nearest first. Safe from several threads.
    """

    entry: FileEntry
    candidates: Mapping[str, ByteSource]
    pieces_are_trusted: bool = True
    """False where the piece digests come from a replica's manifest: whoever writes then proves the whole SHA-256 before publishing."""
    together: Sequence[str] = ()
    """Candidates on separate devices: each thread begins with another of them, so that all are read at once and the faster one gives more."""
    mended: str = ""
    """The copy whose file is being mended, where it is a candidate itself: a bad place in it says nothing about its other pieces."""
    used_bytes: dict[str, int] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict, repr=False)
    _failed: set[str] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read_piece(self, index: int, buffer: memoryview) -> memoryview:
        """The bytes of piece *index* in the first part of *buffer* (at least piece_bytes long).

        :raises Rotten: when no candidate has it; OtherSide errors of candidates count as not having it.
        """
        # Not entry.ranges: it makes the whole list, and a large file has 10,000 pieces.
        start = index * self.entry.piece_bytes
        end = min(start + self.entry.piece_bytes, self.entry.size_bytes)
        view = buffer[: end - start]
        errors: list[SteelyardError] = []
        for name in self._order():
            source = self.candidates[name]
            try:
                if self._read(source, start, view) == self.entry.pieces[index]:
                    with self._lock:
                        self.used_bytes[name] = self.used_bytes.get(name, 0) + len(view)
                    return view
            except SteelyardError as error:
                if error.exit_code == 130:
                    raise
                errors.append(error)
                if name != self.mended:
                    self._failed.add(name)
        raise Rotten((start, end), list(self.candidates), errors)

    def _order(self) -> list[str]:
        """Nearest first; those to be read together begin with another one in each thread; one that gave an error comes last from then on."""
        names = list(self.candidates)
        among = [name for name in names if name in self.together and name not in self._failed]
        if len(among) > 1:
            with self._lock:
                turn = self._turns.setdefault(threading.get_ident(), len(self._turns)) % len(among)
            turned = iter(among[turn:] + among[:turn])
            names = [next(turned) if name in among else name for name in names]
        # What lies in an archive costs money and hours to wake: it comes after everything else.
        late = self._failed | {name for name in names if getattr(self.candidates[name], "last_resort", False)}
        return sorted(names, key=lambda name: name in late) if late else names

    @staticmethod
    def _read(source: ByteSource, start: int, view: memoryview) -> str:
        """Fill *view* and return its BLAKE3; sub-reads so that a local file's bytes are hashed while they are in the cache."""
        from blake3 import blake3

        if (digested := getattr(source, "read_digested", None)) is not None:
            return str(digested(start, view)[1])
        if getattr(source, "remote", False):
            got = source.readinto(start, view)
            return blake3(view[:got]).hexdigest()
        digest = blake3()
        step = getattr(source, "read_bytes", READ_BYTES)
        for at in range(0, len(view), step):
            part = view[at : at + step]
            got = source.readinto(start + at, part)
            digest.update(part[:got])
            if got < len(part):
                break
        return digest.hexdigest()

    def close(self) -> None:
        for source in self.candidates.values():
            source.close()


class Copy(Protocol):
    """What every kind of copy can do. A snapshot is one model at one commit; its manifest says what is in it.

    One contract suite (tests/copies) runs against every kind.
    """

    name: str
    kind: CopyKind

    def ready(self, *, write: bool) -> None:
        """:raises Refused, OtherSide: when the copy can't be used now (mount absent, read-only, bucket missing); nothing is changed."""

    def failure_domain(self) -> str:
        """Copies with the same answer die together and count as one."""

    def commits(self, model: str) -> list[str]:
        """Snapshots of *model* that are complete (their manifest is there), oldest first."""

    def manifest(self, model: str, commit: str) -> Manifest | None:
        """The manifest kept with the snapshot. :raises BadRecord: when it is damaged."""

    def where(self, manifest: Manifest, path: str) -> str:
        """Path or URL of a file, for reports."""

    def open(self, manifest: Manifest, entry: FileEntry) -> ByteSource:
        """Its bytes, unproven. :raises Missing, WrongType, Unreadable, OtherSide:"""

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        """A verdict on one file; *recorded* is what the last look found. Raises OtherSide only; what is wrong with the file is a finding."""

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        """Bring one file in, proven piece by piece as it is read and again after it is written; goes on where a killed run stopped.

        :raises Rotten: when a piece can't be had; nothing stands under the final name then, and what stood there still does.
        """

    def mend(self, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader) -> int:
        """Replace what *finding* names by proven bytes and return how many were moved; the bad bytes go to quarantine first.

        :raises Rotten: when a piece can't be had; the file is then as it was.
        """

    def seal(self, manifest: Manifest) -> None:
        """Publish the snapshot's records (manifest, SHA256SUMS, RESTORE.txt) once all its files are there."""

    def strays(self, manifest: Manifest) -> list[str]:
        """Files in the snapshot's folder that its manifest does not name."""


def piece_holds(source: ByteSource, entry: FileEntry, index: int) -> bool:
    """Whether one piece of *source* is what the manifest says."""
    start, end = entry.ranges[index]
    digest, got = digest_range(source, start, end, aligned_buffer(min(READ_BYTES, end - start)))
    return got == end - start and digest == entry.pieces[index]


def corrupt(path: object, ranges: Sequence[Range], why: str) -> Corrupt:
    return Corrupt(path=str(path), why=why, ranges=tuple(ranges))
