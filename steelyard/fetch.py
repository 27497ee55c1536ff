"""One file from the Hub: ranged, journaled, watched, verified. What leaves here is proven to be what the lock says; it is published elsewhere."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import Corrupt, NoSpace, OtherSide, Range, SteelyardError, Stopped
from steelyard.hot import HotBlocks
from steelyard.line import Line
from steelyard.lock import LockedFile
from steelyard.manifest import FileEntry
from steelyard.pieces import MIB, Arrival, Digests, merge_ranges, pool
from steelyard.quarantine import keep_ranges, set_aside
from steelyard.second import SecondCopy
from steelyard.source import LocalFile
from steelyard.staging import Partial
from steelyard.transfer import Transfer, missing_bytes
from steelyard.watch import Watch, current_watch
from steelyard.weather import Patience, Trouble, as_error

log = logging.getLogger("steelyard.fetch")

SMALL_BYTES = MIB
"""Files up to this size come whole in one request each, many at once."""
Seed = Callable[[Partial], Sequence[Range]]
"""Fills some ranges of an empty partial from bytes at hand that are probably right, and says which (see delta.py)."""


@dataclass(frozen=True)
class Fetched:
    """A proven file in staging. *bytes_fetched* is what came over the line in this run, repeats included."""

    entry: FileEntry
    bytes_fetched: int
    resumed: bool
    retries: int
    bytes_reused: int = 0


def fetch(
    lines: Sequence[Line],
    file: LockedFile,
    staging: Path,
    quarantine: Path,
    *,
    connections: int,
    patience_s: float,
    seed: Seed | None = None,
    second: SecondCopy | None = None,
) -> Fetched:
    """Bring *file* into *staging*, going on with what lies there, and prove it by the locked digest.

    The first line is the primary; the others (mirrors) are tried after it. *seed* may fill an empty partial first: what it put there is
    fetched after all when the proof fails. *second* gets every block too. Memory stays below 64 MiB.
    :raises Corrupt: when what arrives is not what was published, from a fresh address or mirror too; the bytes are in quarantine then.
    :raises Unreachable, AccessDenied, Gone, BadAnswer, NoSpace, ReadOnly, Stopped: what has arrived is kept in staging.
    """
    received, retries, resumed = 0, 0, False
    wrong: list[tuple[Path, Digests]] = []
    seeded: Sequence[Range] = ()
    first = True
    while True:
        with _open_partial(staging, file, wrong) as partial:
            began_with = partial.have()
            if first and not began_with and seed is not None:
                seeded = seed(partial)
            if second is not None and (began_with or seeded):
                second.give_up()
            resumed = resumed or (first and bool(began_with))
            # Every wrong arrival turns to the next line, and to a fresh address of it.
            turn = len(wrong) % len(lines)
            turned = [*lines[turn:], *lines[:turn]]
            got, tried, digests = _arrive(turned, file, partial, second, connections=connections, patience_s=patience_s)
            received, retries = received + got, retries + tried
            if is_right(file, digests):
                partial.fsync()
                if wrong:
                    _keep_evidence(wrong[0], digests, quarantine, file)
                return Fetched(FileEntry.of(file.path, digests, file.etag), received, resumed, retries, missing_bytes(seeded))
            if seeded:
                log.warning("%s: the bytes taken from the older version are not those of this one; fetching them", file.path)
                partial.drop(seeded)
                seeded, first = (), False
                continue
            if began_with and partial.drop_what_does_not_hold(current_watch().stop):
                # A power loss took blocks that the journal knew: not the other side's fault.
                log.warning("%s: some of what was staged before is damaged; fetching that again", file.path)
                first = False
                continue
            if len(wrong) >= max(1, len(lines) - 1):
                # Wrong from every line, or twice from the only one. The first copy is evidence enough.
                partial.discard()
                break
            log.warning("%s: what arrived has SHA-256 %s, %s was published; trying once more", file.path, digests.sha256, file.etag)
            partial.journal.unlink(missing_ok=True)
            if wrong:
                partial.discard()
                wrong.append((partial.path, digests))
            else:
                why = f"arrived with sha256 {digests.sha256}, published is {file.etag}"
                wrong.append((set_aside(quarantine, partial.path, why), digests))
            for line in lines:
                line.forget(file)
            if second is not None:
                second.forget()
            first = False
    raise wrong_bytes(file, wrong[0][1].sha256 if wrong else digests.sha256)


def wrong_bytes(file: LockedFile, found: str) -> Corrupt:
    return Corrupt(
        path=file.path,
        why=f"the other side sends bytes with SHA-256 {found}, it published {file.etag}",
        hint="nothing was put under the final name; try again later, or name a mirror in [hub] mirrors",
        ranges=((0, file.size_bytes),),
    )


def is_right(file: LockedFile, digests: Digests) -> bool:
    """Whether digested bytes are what was agreed on. They must have been digested with git=True where the lock has no SHA-256."""
    if digests.size_bytes != file.size_bytes:
        return False
    return digests.sha256 == file.sha256 if file.sha256 else digests.git_sha1 == file.git_sha1


def _open_partial(staging: Path, file: LockedFile, wrong: Sequence[tuple[Path, Digests]]) -> Partial:
    try:
        return Partial(staging, file.path, file.etag, file.size_bytes)
    except NoSpace:
        if not wrong or not wrong[0][0].exists():
            raise
        # The evidence's digests are known; its bytes may go before the user's file can't come.
        wrong[0][0].unlink()
        return Partial(staging, file.path, file.etag, file.size_bytes)


def _keep_evidence(wrong: tuple[Path, Digests], right: Digests, quarantine: Path, file: LockedFile) -> None:
    """Of a whole wrong file keep only the pieces that are wrong."""
    path, digests = wrong
    if not path.exists():
        return
    step = right.piece_bytes
    ranges = [
        (index * step, min((index + 1) * step, file.size_bytes))
        for index, (one, other) in enumerate(zip(digests.pieces, right.pieces, strict=False))
        if one != other
    ]
    keep_ranges(quarantine, path, merge_ranges(ranges), f"{file.path} arrived wrong in these ranges once")
    path.unlink()
    (path.parent / "record.json").unlink(missing_ok=True)
    path.parent.rmdir()


def _arrive(
    lines: Sequence[Line], file: LockedFile, partial: Partial, second: SecondCopy | None, *, connections: int, patience_s: float
) -> tuple[int, int, Digests]:
    """Fill *partial* while a follower digests it; bytes received, retries, digests. :raises: the first line's error when no line brings it."""
    watch = current_watch()
    ended = threading.Event()
    received = 0
    first_error: SteelyardError | None = None
    with watch.job(f"download {file.path}", file.size_bytes) as job, pool(connections + 1, ended) as executor:
        watch.advance(job, file.size_bytes - missing_bytes(partial.missing()))
        hot = HotBlocks()
        follower = executor.submit(_follow, partial, file, hot, ended, watch)
        for line in lines:
            transfer = Transfer(line, file, partial, hot, second, patience_s=patience_s, job=job, watch=watch)
            try:
                transfer.run(executor, connections)
                return received + transfer.received_bytes, job.retries, follower.result()
            except Trouble as trouble:
                error: SteelyardError = as_error(trouble, line.endpoint, line.repo_id)
            except OtherSide as refused:
                error = refused
            received += transfer.received_bytes
            first_error = first_error or error
            if line is not lines[-1]:
                log.warning("%s: %s; going on with the next mirror", file.path, error)
        assert first_error is not None
        raise first_error


def _follow(partial: Partial, file: LockedFile, hot: HotBlocks, ended: threading.Event, watch: Watch) -> Digests:
    """Digest the staged file in order, right behind what has arrived: from memory where it is at hand, else from the page cache."""
    arrival = Arrival(file.size_bytes, git=not file.sha256)
    buffers = arrival.buffers()
    try:
        with LocalFile(partial.path) as source:
            at = 0
            while at < file.size_bytes:
                with partial.changed:
                    while partial.frontier <= at:
                        hot.hungry()
                        if ended.is_set() or watch.stop.is_set():
                            raise Stopped()
                        partial.changed.wait(0.2)
                    ready = partial.frontier
                while at < ready:
                    if ended.is_set() or watch.stop.is_set():
                        raise Stopped()
                    if (block := hot.take(at)) is not None:
                        view, buffer = block
                        at += len(view)
                        arrival.feed(view, functools.partial(hot.give_back, buffer))
                        continue
                    # Up to where the next block begins, which may be at hand again.
                    view = next(buffers)[: min(MIB - at % MIB, ready - at)]
                    at += source.readinto(at, view)
                    arrival.feed(view)
        return arrival.finish()
    finally:
        hot.hungry()
        arrival.close()


def fetch_small(lines: Sequence[Line], file: LockedFile, *, patience_s: float) -> tuple[bytes, Digests, int]:
    """A small file whole, proven by the locked digest: content, digests, retries. Errors as of fetch()."""
    watch = current_watch()
    retries = 0
    wrong = ""
    first_error: SteelyardError | None = None
    for line in lines:
        patience = Patience(patience_s)
        for _ in range(2):
            try:
                content = _small(line, file, patience, watch)
            except Trouble as trouble:
                first_error = first_error or as_error(trouble, line.endpoint, line.repo_id)
                break
            except OtherSide as error:
                first_error = first_error or error
                break
            finally:
                retries += patience.retries
                patience.retries = 0
            arrival = Arrival(len(content), git=True)
            arrival.feed(content)
            digests = arrival.finish()
            if is_right(file, digests):
                return content, digests, retries
            wrong = wrong or digests.sha256
    if first_error is not None and not wrong:
        raise first_error
    raise wrong_bytes(file, wrong)


def _small(line: Line, file: LockedFile, patience: Patience, watch: Watch) -> bytes:
    while True:
        try:
            return line.small(file)
        except Trouble as trouble:
            if not patience.endure(trouble, watch):
                raise
