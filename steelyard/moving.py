"""Carrying a store's files to another place: what is recorded by piece and proof, everything else as it is, each read back from the medium."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import sqlite3
import stat as stat_bits
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steelyard.copies.base import Finding, Look, ProvenReader, Rotten
from steelyard.copies.folder import FolderCopy, stat_of
from steelyard.copies.judging import by_pieces
from steelyard.disk import device_of, errors_of, fsync_folder, make_folder, publish
from steelyard.errors import Corrupt
from steelyard.hubcache import try_hardlink
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import OURS
from steelyard.pieces import MIB
from steelyard.restore import Folder, candidates
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.store import MOVED, Store
from steelyard.switch import held_folder, held_revisions
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

NOT_CARRIED = frozenset({"locks", "staging", "drill", MOVED, "moving.json"})
"""Of our own folder: what belongs to a place, or to a run."""
HISTORY = "history.sqlite"
_EXCHANGE = 2


@dataclass(frozen=True)
class Recorded:
    """A file that a manifest names, at *source*; *kept*: of an older revision, which is held beside the current one."""

    manifest: Manifest
    entry: FileEntry
    source: Path
    kept: bool


def recorded(site: Site) -> list[Recorded]:
    """Every file that the store should hold, current ones first."""
    found = [
        Recorded(manifest, entry, site.store.path_of(manifest, entry.path), False)
        for manifest in site.held_manifests()
        for entry in manifest.files
    ]
    for model in site.config.models:
        for held in held_revisions(site, model):
            folder, manifest = held_folder(site, model, held.commit), site.manifest(model, held.commit)
            there = [entry for entry in manifest.files if (folder / entry.path).is_file()]
            found += [Recorded(manifest, entry, folder / entry.path, True) for entry in there]
    return found


def others(root: Path, known: set[Path]) -> Iterator[Path]:
    """Everything else below *root*, in order: files and links that nothing records, and our own records; no other file system is entered."""
    device = root.stat().st_dev
    for base, folders, names in os.walk(root):
        here = Path(base)
        ours = here == root / OURS
        folders[:] = sorted(name for name in folders if not (ours and name in NOT_CARRIED) and (here / name).lstat().st_dev == device)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = here / name
            if path not in known and not (ours and (name in NOT_CARRIED or name.startswith(HISTORY))):
                yield path


def bring(site: Site, target: Store, one: Recorded, copies: list[str]) -> tuple[str, int, list[str]]:
    """One recorded file to *target*, proven as it is read and again as it lies there: action, bytes written, copies that gave pieces.

    On one file system it is a second name for the same bytes. A piece that has rotted comes from whichever copy has it.
    :raises Corrupt: when a piece is good in none of them.
    """
    place: FolderCopy = target
    if one.kept:
        place = Folder(target.ours / "held" / one.manifest.model / one.manifest.commit)
        place.ours = target.ours
    final = place.path_of(one.manifest, one.entry.path)
    if device_of(one.source) == device_of(target.root) and not final.exists() and _named(one, place, final, target.ours):
        return "linked", 0, ["store"]
    sources = {"store": source} if (source := _open(one.source)) else {}
    reader = ProvenReader(one.entry, {**sources, **candidates(site, one.manifest, one.entry, copies, hub=True)})
    try:
        brought = place.bring(one.manifest, one.entry, reader)
    except Rotten as rotten:
        for error in rotten.errors:
            if error.exit_code == 4:
                raise error from rotten
        why = f"bytes {rotten.where[0]:,} to {rotten.where[1]:,} are good in none of {', '.join(rotten.tried)}"
        hint = "the store stays where it is; see what is held where with: steelyard verify --copy all"
        raise Corrupt(path=str(one.source), why=why, ranges=(rotten.where,), hint=hint) from rotten
    finally:
        reader.close()
    if brought.action == "unchanged" and not place.judge(one.manifest, one.entry, Look(cold=True)).ok:
        raise Corrupt(path=str(final), why="the new drive does not give back what was written there", hint="look at the drive's health")
    return brought.action, brought.bytes_written, sorted(reader.used_bytes)


def _open(path: Path) -> LocalFile | None:
    try:
        return LocalFile(path)
    except Exception:  # noqa: BLE001 (what can't be opened is taken from another copy)
        return None


def _named(one: Recorded, place: FolderCopy, final: Path, ours: Path) -> bool:
    staged = make_folder(ours / "staging") / f"view-{one.entry.sha256[:20]}.partial"
    staged.unlink(missing_ok=True)
    if not one.source.is_file() or not try_hardlink(one.source.resolve(), staged):
        return False
    with LocalFile(staged) as source:
        whole = by_pieces(source, one.entry, cold=False).ok
    if not whole:
        staged.unlink()
        return False
    publish(staged, final)
    return True


def proof_of(one: Recorded, target: Store) -> tuple[str, Finding]:
    """How the file lies at the new place, for the history there: its name in it, and the proof."""
    folder = target.ours / "held" / one.manifest.model / one.manifest.commit
    path = folder / one.entry.path if one.kept else target.path_of(one.manifest, one.entry.path)
    proof = Finding("ok", proof="pieces, when the store moved", bytes_read=one.entry.size_bytes, stat=stat_of(path.stat()))
    return "held" if one.kept else "store", proof


def copy_as_is(source: Path, root: Path, final: Path, staging: Path) -> int:
    """A file or link that nothing records: copied with its times and mode, read back, compared; bytes written, 0 where it was there already.

    :raises Corrupt: when what is read back differs. Devices, pipes and sockets are passed over.
    """
    seen = source.lstat()
    if stat_bits.S_ISLNK(seen.st_mode):
        if not final.is_symlink() and not final.exists():
            target = source.readlink()
            whole = Path(os.path.normpath(source.parent / target))
            make_folder(final.parent)
            # A link that leads out of the store (*root*) by a relative path would lead elsewhere from its new place.
            with errors_of(final):
                final.symlink_to(target if whole.is_relative_to(root) else whole)
        return 0
    if not stat_bits.S_ISREG(seen.st_mode):
        log.warning("%s is no file and is not carried over", source)
        return 0
    try:
        there = final.lstat()
        if (there.st_size, there.st_mtime_ns) == (seen.st_size, seen.st_mtime_ns):
            return 0
    except OSError:
        pass
    partial = make_folder(staging) / f"move-{hashlib.sha256(str(final).encode()).hexdigest()[:20]}.partial"
    with errors_of(final):
        digest = _copy(source, partial, seen.st_mode & 0o777)
        if _digest(partial) != digest:
            raise Corrupt(path=str(final), why="the new drive does not give back what was written there", hint="look at the drive's health")
        os.utime(partial, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        publish(partial, final)
    return seen.st_size


def _copy(source: Path, partial: Path, mode: int) -> bytes:
    watch, digest = current_watch(), hashlib.sha256()
    with source.open("rb") as old, open(partial, "wb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, mode)) as new:
        while part := old.read(MIB):
            watch.check()
            digest.update(part)
            new.write(part)
        new.flush()
        os.fsync(new.fileno())
        os.posix_fadvise(new.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.digest()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def copy_history(source: Path, final: Path) -> None:
    """SQLite copies itself, whole at one moment, whoever reads or writes meanwhile. Losing it loses ages, never a file's truth."""
    if not source.is_file():
        return
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        old, new = sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True), sqlite3.connect(partial)
        try:
            old.backup(new)
        finally:
            old.close()
            new.close()
        publish(partial, final)
    except sqlite3.Error as error:
        log.warning("the history could not be taken along (%s): ages and trends begin anew", error)
        partial.unlink(missing_ok=True)


def put_link(path: Path, target: Path, aside: Path) -> None:
    """Make *path*, a folder or a link by now, a link to *target*, and give what it was the name *aside*; in one step where the kernel can."""
    with errors_of(path):
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        if _exchange(path, aside):
            fsync_folder(path.parent)
            return
        fresh = aside.with_name(f"{aside.name}.link")
        fresh.unlink(missing_ok=True)
        aside.rename(fresh)
        if path.exists() or path.is_symlink():
            path.rename(aside)
        os.replace(fresh, path)
        fsync_folder(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (renameat2); False where the file system can't."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None or not os.path.lexists(one):
        return False
    if call(-100, os.fsencode(one), -100, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(one))
