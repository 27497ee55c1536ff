"""Repair of one file of one copy: it is judged, priced or mended, and its row says which bytes were moved, or are lost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from steelyard.copies.base import Copy, Finding, Look, ProvenReader, Rotten, piece_holds
from steelyard.copies.folder import FolderCopy
from steelyard.copies.judging import is_cached
from steelyard.errors import Archived, NotWhole, OtherSide, SteelyardError, Unreachable
from steelyard.localise import lost_tensors
from steelyard.manifest import FileEntry, Manifest
from steelyard.mending import RunningSha
from steelyard.parity_source import parity_source
from steelyard.pieces import MIB, default_threads, merge_ranges
from steelyard.report import Row
from steelyard.restore import candidates
from steelyard.sha256 import stretches
from steelyard.site import Site
from steelyard.source import ByteSource, LocalFile
from steelyard.steps import Run
from steelyard.verify import judge_files, told_ranges

log = logging.getLogger("steelyard")

LARGE_BYTES = 256 * MIB
MENDABLE = {"corrupt", "missing", "unreadable"}


def repair_file(
    site: Site, name: str, manifest: Manifest, trusted: bool, entry: FileEntry, sources: Sequence[str], dry_run: bool, run: Run
) -> tuple[Row | None, SteelyardError | None]:
    """Judge one file and mend it. What stands in its way (a folder under its name, a Hub that is away) is told beside its row, and stops no other
    file. No row where its bytes were asked back out of an archive: it is not known yet what becomes of it.

    :raises Refused: what stands in the way of every file.
    """
    where = site.copies[name]
    with contextlib.ExitStack() as stack:
        running = None if dry_run else _begin_sha(where, manifest, entry, stack)
        # The SHA-256 is what takes longest: it has a core for itself.
        look = Look(depth="deep", threads=max(1, default_threads() - 1) if running is not None else 0)
        finding = run(judge_files, site, name, manifest, [entry], look)[entry.path]
        if finding.verdict not in MENDABLE:
            action = "nothing-to-do" if finding.ok else "beyond-repair"
            return _row(where, manifest, entry, action, 0, (), finding, 0 if finding.ok else 1), None
        try:
            return run(mend_file, site, name, manifest, trusted, entry, finding, sources, dry_run, running), None
        except Archived as error:
            return None, error
        except (NotWhole, OtherSide) as error:
            row = _row(where, manifest, entry, "beyond-repair", 0, (), finding, 1, error.message)
            if isinstance(error, Unreachable) and "hub" in sources:
                here = [one for one in sources if one != "hub"]
                with contextlib.suppress(NotWhole, OtherSide):
                    # Once more without the Hub: it says which bytes nobody else has.
                    row = run(mend_file, site, name, manifest, trusted, entry, finding, here, dry_run, running)
            return row, error


def _begin_sha(where: Copy, manifest: Manifest, entry: FileEntry, stack: contextlib.ExitStack) -> RunningSha | None:
    """Begin the whole SHA-256 of a large file that lies in memory, beside its judging: it is what a mending waits for longest.

    Not where it will be proven on every core, once there is something to mend.
    """
    if not isinstance(where, FolderCopy) or entry.size_bytes < LARGE_BYTES:
        return None
    if default_threads() > 1 and stretches(entry.size_bytes, entry.sha256_states):
        return None
    try:
        path = where.path_of(manifest, entry.path)
        with LocalFile(path) as source:
            if not is_cached(source):
                return None
    except SteelyardError:
        return None
    return stack.enter_context(RunningSha(path, entry))


def _row(
    where: Copy,
    manifest: Manifest,
    entry: FileEntry,
    action: str,
    moved: int,
    sources: Sequence[str],
    finding: Finding,
    exit_code: int = 0,
    why: str = "",
) -> Row:
    facts: dict[str, object] = {
        "action": action,
        "bytes_moved": moved,
        "sources": list(sources),
        "commit": manifest.commit,
        "found": finding.verdict,
    }
    if finding.bad_ranges:
        facts["bad_ranges"] = told_ranges(finding, entry)
    if why:
        facts["why"] = why
    return Row(manifest.model, entry.path, where.name, where.where(manifest, entry.path), facts, exit_code)


def mend_file(
    site: Site,
    name: str,
    manifest: Manifest,
    trusted: bool,
    entry: FileEntry,
    finding: Finding,
    others: Sequence[str],
    dry_run: bool,
    running: RunningSha | None,
) -> Row:
    """Step: mend one file of one copy from *others*, "hub" among them where it is to be asked.

    beyond-repair (exit 1) when a bad piece is good nowhere; the file is then as it was.
    """
    where = site.copies[name]
    here = [one for one in others if one != "hub"]
    sources: dict[str, ByteSource] = candidates(site, manifest, entry, here, hub="hub" in others)
    # Last: it needs no other copy, but reads the whole file and computes, where a range of the Hub is one request.
    parity = None if dry_run else parity_source(site, [name, *here], manifest, entry)
    if parity is not None:
        sources["parity"] = parity
    reader = ProvenReader(entry, sources, pieces_are_trusted=trusted, mended=name)
    try:
        if dry_run:
            return _price(where, manifest, entry, finding, reader)
        if finding.verdict in {"unreadable", "missing"} or (isinstance(where, FolderCopy) and finding.proof != "presence"):
            # A partial or the good pieces of the file itself are nearer than any other copy; not where its name leads elsewhere.
            with contextlib.suppress(SteelyardError):
                reader.candidates = {name: where.open(manifest, entry), **sources}
        # Only a folder's mending can use a SHA-256 that runs already.
        more = (running,) if isinstance(where, FolderCopy) else ()
        moved = where.mend(manifest, entry, finding, reader, *more)
    except Rotten as rotten:
        for error in rotten.errors:
            # With parity everything that is here was tried; a Hub that is away may still have the rest.
            if isinstance(error, Archived) or (error.transient and parity is None):
                raise error from rotten
        return _beyond(where, manifest, entry, finding, reader, next((error for error in rotten.errors if error.transient), None))
    finally:
        reader.close()
    used = sorted((one for one in reader.used_bytes if one != name), key=lambda one: -reader.used_bytes[one])
    # Mending has proven what it wrote, and the whole by its SHA-256; what is left to note is how the file lies now.
    quick = where.judge(manifest, entry, Look("quick"), None)
    site.history.record(
        name, manifest.model, manifest.commit, entry.path, Finding("ok", proof="mended, sha256 of the whole", stat=quick.stat)
    )
    log.warning("%s · %s in %s: mended %d bytes from %s", manifest.model, entry.path, name, moved, ", ".join(used) or "itself")
    return _row(where, manifest, entry, "repaired", moved, used, finding)


def _beyond(
    where: Copy, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader, weather: SteelyardError | None = None
) -> Row:
    """No copy has some piece: which bytes are lost, and which tensors they belong to."""
    local = {name: source for name, source in reader.candidates.items() if name != "hub"}
    lost = merge_ranges(
        where_
        for index, where_ in enumerate(entry.ranges)
        if any(where_[0] < hi and lo < where_[1] for lo, hi in finding.bad_ranges)
        and not any(_holds(one, entry, index) for one in local.values())
    )
    why = f"{len(lost)} range{'s are' if len(lost) != 1 else ' is'} good in none of {', '.join(reader.candidates)}"
    if weather is not None:
        why += f"; the Hub was not asked: {weather.message}"
    row = _row(where, manifest, entry, "beyond-repair", 0, (), finding, 1, why)
    tensors: list[str] = []
    with contextlib.suppress(SteelyardError), contextlib.closing(where.open(manifest, entry)) as source:
        tensors = lost_tensors(source, lost)
    return replace(row, facts={**row.facts, "lost_ranges": [list(one) for one in lost], "lost_tensors": tensors})


def _holds(source: ByteSource, entry: FileEntry, index: int) -> bool:
    try:
        return piece_holds(source, entry, index)
    except SteelyardError:
        return False


def _price(where: Copy, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader) -> Row:
    """What a repair would move, and from where, by asking each local copy for just the bad pieces."""
    moved, used, lost = 0, dict[str, int](), list[tuple[int, int]]()
    for index, (start, end) in enumerate(entry.ranges):
        if finding.verdict != "missing" and not any(start < hi and lo < end for lo, hi in finding.bad_ranges):
            continue
        for name, source in reader.candidates.items():
            if name == "hub" or _holds(source, entry, index):
                used[name] = used.get(name, 0) + end - start
                moved += end - start
                break
        else:
            lost.append((start, end))
    if lost:
        return _row(where, manifest, entry, "beyond-repair", 0, (), finding, 1, f"{len(lost)} pieces are good in no copy")
    return _row(where, manifest, entry, "would-repair", moved, sorted(used, key=lambda one: -used[one]), finding, 1)
