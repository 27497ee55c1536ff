"""What must hold after every step, whatever happened in it. Judged by an oracle that keeps the right bytes; nothing is asked of the product."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.world import MODEL, PIECE_BYTES, World, git_sha1

RECORDS = {"manifest.json", "SHA256SUMS", "RESTORE.txt"}


class Broken(Exception):
    """An invariant is broken; the message says which."""


@dataclass(frozen=True)
class Final:
    """A file under a final name. *right*: what it may hold, by name of what that is; *place* is the copy."""

    place: str
    path: Path
    file: str
    right: tuple[bytes, ...]


@dataclass
class Oracle:
    """Knows the right bytes, what was damaged on purpose, and what was whole a step ago."""

    world: World
    damaged: dict[Path, set[int]] = field(default_factory=dict)
    """Pieces of a file that we spoiled; or {-1}: cut, grown or removed."""
    spoiled_files: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    """The same by device and inode: an update takes what it finds damaged aside as it is, under another name."""
    whole: dict[Path, bytes] = field(default_factory=dict)
    bytes_judged: int = 0
    _by_etag: dict[str, bytes] = field(default_factory=dict)
    _rights: dict[int, bytes] = field(default_factory=dict)
    _digests: dict[tuple[int, int, int, int], bytes] = field(default_factory=dict)

    # --- what stands under final names

    def finals(self) -> Iterator[Final]:
        world = self.world
        files = {path for revision in world.revisions for path in revision}
        for file in sorted(files):
            right = tuple(revision[file] for revision in world.revisions if file in revision)
            yield Final("store", world.models / MODEL / file, file, right)
            yield Final("into", world.into / file, file, right)
            for commit in world.commits:
                own = world.right(commit, file)
                yield Final("held", world.models / ".steelyard/held" / MODEL / commit / file, file, (own,) if own is not None else ())
                for name, root in world.replicas.items():
                    yield Final(name, root / MODEL / commit / file, file, (own,) if own is not None else ())
        if not self._by_etag:
            for data in (data for revision in world.revisions for data in revision.values()):
                self._by_etag |= {hashlib.sha256(data).hexdigest(): data, git_sha1(data): data}
        by_etag = self._by_etag
        blobs = world.cache / "blobs"
        for blob in sorted(blobs.iterdir()) if blobs.is_dir() else ():
            if blob.name not in by_etag:
                raise Broken(f"a blob of a name that nothing has: {blob}")
            yield Final("hub-cache", blob, blob.name, (by_etag[blob.name],))

    def judge(self, after: str = "") -> None:
        """:raises Broken: when a wrong file stands under a final name, or one that was whole is not any more."""
        seen: dict[Path, bytes] = {}
        for final in self.finals():
            if not final.path.is_file():
                continue
            digest = self._digest(final.path)
            good = {self._of(one) for one in final.right}
            if digest in good:
                seen[final.path] = digest
                self.damaged.pop(final.path, None)
                at = final.path.stat()
                # Whole again, or another file that got the number of one that is gone.
                self.spoiled_files.pop((at.st_dev, at.st_ino), None)
            elif not self._is_our_damage(final):
                raise Broken(f"{after}: wrong bytes under the final name {final.path}")
        drive = self.world.drive
        if drive is not None and not drive.is_plugged:
            if any(drive.point.iterdir()):
                raise Broken(f"{after}: something was written into the bare mount point")
            seen |= {path: digest for path, digest in self.whole.items() if path.is_relative_to(drive.point)}
        for path in self.whole:
            if path not in seen and not path.exists() and path not in self.damaged and not self._may_go(path, seen):
                raise Broken(f"{after}: {path} was whole and is gone")
        self.whole = seen
        self._links(after)
        self._records(after)

    def _may_go(self, path: Path, seen: dict[Path, bytes]) -> bool:
        """A file of the store that the other revision does not have; what is held beside it; a copy restored elsewhere."""
        world = self.world
        ours = world.models / ".steelyard"
        if path.is_relative_to(ours / "held"):
            return True
        if path.is_relative_to(world.models / MODEL):
            file = path.relative_to(world.models / MODEL).as_posix()
            return any(file not in revision for revision in world.revisions) and len(world.commits) > 1
        return False

    def _is_our_damage(self, final: Final) -> bool:
        """Whether all that is wrong lies in pieces that we spoiled: a repair may have been cut short in them."""
        pieces = self.damaged.get(final.path)
        if pieces is None and final.place == "held":
            seen = final.path.stat()
            pieces = self.spoiled_files.get((seen.st_dev, seen.st_ino))
        if pieces is None:
            return False
        if -1 in pieces:
            return True
        data = final.path.read_bytes()
        for right in final.right:
            if len(data) == len(right):
                wrong = {
                    at // PIECE_BYTES
                    for at in range(0, len(data), PIECE_BYTES)
                    if data[at : at + PIECE_BYTES] != right[at : at + PIECE_BYTES]
                }
                if wrong <= pieces:
                    return True
        return False

    def _links(self, after: str) -> None:
        for commit in self.world.commits:
            folder = self.world.cache / "snapshots" / commit
            for link in folder.rglob("*") if folder.is_dir() else ():
                if link.is_dir() and not link.is_symlink():
                    continue
                file = link.relative_to(folder).as_posix()
                if link.name.startswith("."):
                    continue  # a link about to be renamed; hidden names are nobody's final ones
                blob = link.resolve()
                right = self.world.right(commit, file)
                if right is None or (not blob.exists() and blob not in self.damaged):
                    raise Broken(f"{after}: {link} leads nowhere, or to a file that the revision lacks")
                if blob.exists() and blob not in self.damaged and self._digest(blob) != self._of(right):
                    raise Broken(f"{after}: {link} leads to other bytes")

    def _records(self, after: str) -> None:
        """Records under their final names are whole: they parse, and seal themselves."""
        from steelyard.errors import BadRecord
        from steelyard.lock import lock_path, read_lock
        from steelyard.manifest import Manifest

        world = self.world
        try:
            if lock_path(world.config) not in self.damaged:
                read_lock(lock_path(world.config))
            found = [*(world.models / ".steelyard/manifests").rglob("*.json")]
            for root in world.replicas.values():
                found += root.glob(f"{MODEL}/*/manifest.json")
            for path in found:
                if path not in self.damaged and not path.name.startswith("."):
                    Manifest.parse(path.read_bytes(), path)
        except BadRecord as error:
            raise Broken(f"{after}: a record under its final name is not whole: {error}") from error
        for root in world.replicas.values():
            for sums in root.glob(f"{MODEL}/*/SHA256SUMS"):
                for line in sums.read_text().splitlines():
                    digest, _, file = line.partition("  ")
                    right = world.right(sums.parent.name, file)
                    if right is None or self._of(right).hex() != digest:
                        raise Broken(f"{after}: {sums} names a wrong digest for {file}")

    def _of(self, right: bytes) -> bytes:
        """The digest of right bytes; they live as long as the world, so where they lie tells them apart."""
        if id(right) not in self._rights:
            self._rights[id(right)] = hashlib.sha256(right).digest()
        return self._rights[id(right)]

    def _digest(self, path: Path) -> bytes:
        seen = path.stat()
        key = (seen.st_dev, seen.st_ino, seen.st_ctime_ns, seen.st_size)
        if key not in self._digests:
            data = path.read_bytes()
            self.bytes_judged += len(data)
            self._digests[key] = hashlib.sha256(data).digest()
        return self._digests[key]

    # --- what the product said

    def told(self, document: dict[str, Any], after: str, *, truth: bool = True) -> None:
        """:raises Broken: when a verdict or a success that a command reported is not true.

        Not *truth*: another run was at work beside it, and what was true when it was said may not be now; only the form is judged.
        """
        if not {"command", "ok", "exit_code", "results", "errors"} <= set(document):
            raise Broken(f"{after}: the JSON document lacks keys")
        if document["ok"] != (document["exit_code"] == 0):
            raise Broken(f"{after}: ok and exit_code contradict each other")
        for error in document["errors"]:
            if error["code"] in {"unexpected", "error"}:
                raise Broken(f"{after}: {error['message']}")
        for row in document["results"] if truth else ():
            verdict, action = row.get("verdict"), row.get("action")
            if document["command"] in {"verify", "scrub"} and row.get("path") and row.get("file") and not row.get("skipped"):
                self._verdict(row, verdict, after)
            if action in {"downloaded", "resumed", "unchanged", "adopted", "copied", "repaired", "nothing-to-do"} and row.get("path"):
                self._success(row, after)

    def _truth(self, row: dict[str, Any]) -> tuple[Path, tuple[bytes, ...]] | None:
        path = Path(row["path"])
        if (
            row.get("copy") == "s3"
            or not path.is_absolute()
            or row.get("file") in {*RECORDS, "model_info.json", None}
            or "://" in row["path"]
        ):
            return None
        rights = tuple(revision[row["file"]] for revision in self.world.revisions if row["file"] in revision)
        return (path, rights) if rights else None

    def _verdict(self, row: dict[str, Any], verdict: str, after: str) -> None:
        known = self._truth(row)
        if known is None:
            return
        path, rights = known
        data = path.read_bytes() if path.is_file() else None
        if verdict == "ok" and data not in rights:
            raise Broken(f"{after}: verdict ok for {path}, which is not right")
        if verdict == "missing" and data is not None:
            raise Broken(f"{after}: verdict missing for {path}, which is there")
        if verdict == "corrupt":
            if data in rights:
                raise Broken(f"{after}: verdict corrupt for {path}, which is right")
            ranges = row.get("bad_ranges")
            if ranges and data is not None and not any(_covers(ranges, data, right) for right in rights):
                raise Broken(f"{after}: the bad ranges {ranges} of {path} miss what differs")

    def _success(self, row: dict[str, Any], after: str) -> None:
        known = self._truth(row)
        if known is None:
            return
        path, rights = known
        if path.is_dir():
            return
        if not path.is_file() or path.read_bytes() not in rights:
            raise Broken(f"{after}: {row.get('action')} was reported for {path}, which is not right")

    def spoiled(self, path: Path, pieces: set[int]) -> None:
        """We damaged *path* ourselves: it counts as whole no more."""
        self.damaged[path] = self.damaged.get(path, set()) | pieces
        if path.exists():
            seen = path.stat()
            self.spoiled_files[seen.st_dev, seen.st_ino] = self.damaged[path]
        self.whole.pop(path, None)


def _covers(ranges: list[list[int]], data: bytes, right: bytes) -> bool:
    if len(data) != len(right):
        return True
    step = 4096
    wrong = [at for at in range(0, len(data), step) if data[at : at + step] != right[at : at + step]]
    return all(any(start < at + step and at < end for start, end in ranges) for at in wrong)


def fsync_rule(trace: list[list[str]], root: str) -> list[str]:
    """Every published name whose file was not fsynced before, or whose folder was not fsynced after; staging and quarantine are ours to lose.

    *trace* is the shim's: ("write", path, inode), ("fsync", path, inode), ("rename", from, to, inode of from), ("sync", folder) …
    """
    dirty: dict[str, str] = {}
    pending: dict[str, str] = {}
    broken = []
    for kind, *facts in trace:
        if kind == "write" or kind == "truncate":
            dirty[facts[1]] = facts[0]
        elif kind == "fsync":
            dirty.pop(facts[1], None)
            pending = {name: folder for name, folder in pending.items() if folder != facts[0]}
        elif kind == "sync":
            dirty.clear()
            pending.clear()
        elif kind in {"rename", "link"} and _counts(facts[1]):
            if facts[2] in dirty:
                broken.append(f"{facts[1].removeprefix(root)} was published before its fsync")
            pending[facts[1]] = str(Path(facts[1]).parent)
        elif kind == "symlink" and _counts(facts[0]):
            pending[facts[0]] = str(Path(facts[0]).parent)
        if kind in {"rename", "unlink"}:
            pending.pop(facts[0], None)
    return broken + [f"{name.removeprefix(root)} was named and its folder not fsynced" for name in pending]


def _counts(name: str) -> bool:
    return not any(part in name for part in ("/staging/", "/quarantine/", "/locks/", ".link", "/incoming/"))
