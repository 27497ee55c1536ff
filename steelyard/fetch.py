"""One file from the Hub: ranged, journaled, watched, verified. What leaves here is proven to be what the lock says; it is published elsewhere."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.errors import Corrupt, NoSpace, Range, SteelyardError, Stopped
from steelyard.line import Address, Line, Stream, as_error
from steelyard.lock import LockedFile
from steelyard.manifest import FileEntry
from steelyard.pieces import MIB, Arrival, Digests, finish, merge_ranges, pool
from steelyard.quarantine import keep_ranges, set_aside
from steelyard.source import LocalFile
from steelyard.staging import BLOCK_BYTES, Partial
from steelyard.watch import Job, Watch, current_watch
from steelyard.weather import Patience, Trouble

log = logging.getLogger("steelyard.fetch")

SPAN_BYTES = 32 * MIB
"""What one request asks for: long enough that its round trip does not count, short enough that the connections end together."""
SMALL_BYTES = MIB
"""Files up to this size come whole in one request each, many at once."""


@dataclass(frozen=True)
class Fetched:
    """A proven file in staging. *bytes_fetched* is what came over the line in this run, repeats included."""

    entry: FileEntry
    bytes_fetched: int
    resumed: bool
    retries: int


@dataclass
class _Plan:
    """What is still to be fetched of one file; shared by its connections."""

    spans: deque[Range]
    lock: threading.Lock = field(default_factory=threading.Lock)
    streams_whole: bool = False
    received: int = 0

    def take(self) -> Range | None:
        with self.lock:
            return self.spans.popleft() if self.spans else None

    def give_back(self, start: int, end: int) -> None:
        with self.lock:
            if start < end:
                self.spans.appendleft((start, end))


def fetch(lines: Sequence[Line], file: LockedFile, staging: Path, quarantine: Path, *, connections: int, patience_s: float) -> Fetched:
    """Bring *file* into *staging*, going on with what lies there, and prove it by the locked digest.

    The first line is the primary; the others (mirrors) are tried after it. Memory stays below 32 MiB.
    :raises Corrupt: when what arrives is not what was published, from a fresh address or mirror too; the bytes are in quarantine then.
    :raises Unreachable, AccessDenied, Gone, BadAnswer, NoSpace, ReadOnly, Stopped: what has arrived is kept in staging.
    """
    received, retries, resumed = 0, 0, False
    suspect: tuple[Path, Digests] | None = None
    for attempt in range(3):
        with _open_partial(staging, file, suspect) as partial:
            resumed = resumed or (attempt == 0 and bool(partial.have()))
            began_with = partial.have()
            got, tried, digests = _arrive(
                lines[attempt % len(lines) :] or lines, file, partial, connections=connections, patience_s=patience_s
            )
            received, retries = received + got, retries + tried
            if _is_right(file, digests):
                partial.fsync()
                if suspect is not None:
                    _keep_evidence(suspect, digests, quarantine, file)
                return Fetched(FileEntry.of(file.path, digests, file.etag), received, resumed, retries)
            if began_with and partial.drop_what_does_not_hold(current_watch().stop):
                # A power loss took blocks that the journal knew: not the other side's fault.
                log.warning("%s: some of what was staged before is damaged; fetching that again", file.path)
                continue
            if suspect is not None or attempt == 2:
                # The same wrong bytes twice: the second copy is no further evidence.
                partial.discard()
                break
            log.warning("%s: what arrived has SHA-256 %s, %s was published; trying once more", file.path, digests.sha256, file.etag)
            partial.journal.unlink(missing_ok=True)
            suspect = (set_aside(quarantine, partial.path, f"arrived with sha256 {digests.sha256}, published is {file.etag}"), digests)
            for line in lines:
                line.forget(file)
    found = suspect[1].sha256 if suspect else "?"
    raise Corrupt(
        path=file.path,
        why=f"the other side sends bytes with SHA-256 {found}, it published {file.etag}",
        hint="nothing was put under the final name; try again later, or name a mirror in [hub] mirrors",
        ranges=((0, file.size_bytes),),
    )


def _open_partial(staging: Path, file: LockedFile, suspect: tuple[Path, Digests] | None) -> Partial:
    try:
        return Partial(staging, file.path, file.etag, file.size_bytes)
    except NoSpace:
        if suspect is None or not suspect[0].exists():
            raise
        # The evidence's digests are known; its bytes may go before the user's file can't come.
        suspect[0].unlink()
        return Partial(staging, file.path, file.etag, file.size_bytes)


def _is_right(file: LockedFile, digests: Digests) -> bool:
    if digests.size_bytes != file.size_bytes:
        return False
    return digests.sha256 == file.sha256 if file.sha256 else digests.git_sha1 == file.git_sha1


def _keep_evidence(suspect: tuple[Path, Digests], right: Digests, quarantine: Path, file: LockedFile) -> None:
    """Of a whole wrong file keep only the pieces that are wrong."""
    path, wrong = suspect
    if not path.exists():
        return
    step = right.piece_bytes
    ranges = [
        (index * step, min((index + 1) * step, file.size_bytes))
        for index, (one, other) in enumerate(zip(wrong.pieces, right.pieces, strict=False))
        if one != other
    ]
    keep_ranges(quarantine, path, merge_ranges(ranges), f"{file.path} arrived wrong in these ranges once")
    path.unlink()


def _arrive(lines: Sequence[Line], file: LockedFile, partial: Partial, *, connections: int, patience_s: float) -> tuple[int, int, Digests]:
    """Fill *partial* while a follower digests it; bytes received, retries, digests. :raises: the last line's error when no line brings it."""
    watch = current_watch()
    ended = threading.Event()
    received = retries = 0
    with watch.job(f"download {file.path}", file.size_bytes) as job, pool(connections + 1, ended) as executor:
        watch.advance(job, file.size_bytes - sum(end - start for start, end in partial.missing()))
        follower = executor.submit(_follow, partial, file, ended)
        for number, line in enumerate(lines, 1):
            patience = Patience(patience_s)
            plan = _Plan(deque())
            try:
                while missing := partial.missing():
                    plan.spans = deque(_spans(missing))
                    plan.streams_whole = False
                    # One connection asks first: an error of the Hub then comes once, and a server without ranges is known.
                    count = min(connections, len(plan.spans))
                    finish([executor.submit(_work, line, file, partial, plan, patience, job, watch, ended) for _ in range(count)])
                break
            except Trouble as trouble:
                ended_by: SteelyardError = as_error(trouble, line.endpoint, line.repo_id)
                if number == len(lines):
                    raise ended_by from trouble
                log.warning("%s: %s; going on with the next mirror", file.path, ended_by)
            except SteelyardError as error:
                if number == len(lines) or error.exit_code != 4:
                    raise
                log.warning("%s: %s; going on with the next mirror", file.path, error)
            finally:
                received, retries = received + plan.received, retries + patience.retries
        return received, retries, follower.result()


def _spans(missing: Sequence[Range]) -> list[Range]:
    return [(at, min(at + SPAN_BYTES, end)) for start, end in missing for at in range(start, end, SPAN_BYTES)]


def _work(
    line: Line, file: LockedFile, partial: Partial, plan: _Plan, patience: Patience, job: Job, watch: Watch, ended: threading.Event
) -> None:
    """One connection: takes spans until there are none. :raises Trouble: when patience is at its end."""
    stale: Address | None = None

    def moved(count: int) -> None:
        patience.progress()
        watch.advance(job, count)
        if ended.is_set() or watch.stop.is_set():
            raise Stopped()

    while (span := plan.take()) is not None:
        at, end = span
        while at < end:
            if ended.is_set() or watch.stop.is_set():
                raise Stopped()
            address: Address | None = None
            try:
                address = line.address(file, stale)
                with line.stream(file, at, end, address) as stream:
                    if stream.start != at:
                        if not _take_over(plan):
                            plan.give_back(at, end)
                            return
                        end = file.size_bytes
                    _into(stream, at, end, partial, plan, moved)
                at = end
            except Trouble as trouble:
                at = _reached(partial, at, end)
                if trouble.reaction.fresh_address and address is not None:
                    stale = address
                log.info("%s at %d: %s", file.path, at, trouble)
                job.retries += 1
                try:
                    if not patience.endure(trouble, watch):
                        raise
                except BaseException:
                    ended.set()
                    raise
            except BaseException:
                ended.set()
                raise


def _take_over(plan: _Plan) -> bool:
    """Where the server ignores Range, one connection takes the whole file and the others leave."""
    with plan.lock:
        if plan.streams_whole:
            return False
        plan.streams_whole = True
        plan.spans.clear()
        return True


def _into(stream: Stream, at: int, end: int, partial: Partial, plan: _Plan, moved: Callable[[int], None]) -> None:
    """Write what the stream brings from *at* on, in journaled blocks. What comes before *at* (a server without ranges) is passed over."""
    from awscrt.checksums import crc64nvme

    while stream.at < at:
        plan.received += len(stream.next(min(BLOCK_BYTES, at - stream.at)))
        moved(0)
    start, crc = at, 0
    try:
        while stream.at < end:
            data = stream.next(start + BLOCK_BYTES - stream.at)
            plan.received += len(data)
            partial.write(stream.at - len(data), data)
            crc = crc64nvme(data, crc)
            if stream.at == start + BLOCK_BYTES:
                partial.record(start, BLOCK_BYTES, crc)
                start, crc = stream.at, 0
            moved(len(data))
    finally:
        # What a broken connection brought is worth keeping too.
        partial.record(start, stream.at - start, crc)


def _reached(partial: Partial, start: int, end: int) -> int:
    """How far the range from *start* is there."""
    for lo, hi in partial.have():
        if lo <= start < hi:
            return min(hi, end)
    return start


def _follow(partial: Partial, file: LockedFile, ended: threading.Event) -> Digests:
    """Digest the staged file in order, right behind what has arrived: the bytes are still in memory, and no second pass is needed."""
    arrival = Arrival(file.size_bytes, git=not file.sha256, ahead=4)
    stop = current_watch().stop
    try:
        with LocalFile(partial.path) as source:
            at = 0
            while at < file.size_bytes:
                with partial.changed:
                    while partial.frontier <= at:
                        if ended.is_set() or stop.is_set():
                            raise Stopped()
                        partial.changed.wait(0.2)
                    ready = partial.frontier
                while at < ready:
                    if ended.is_set() or stop.is_set():
                        raise Stopped()
                    buffer = memoryview(bytearray(min(MIB, ready - at)))
                    at += source.readinto(at, buffer)
                    arrival.feed(buffer)
        return arrival.finish()
    finally:
        arrival.close()


def fetch_small(lines: Sequence[Line], file: LockedFile, *, patience_s: float) -> tuple[bytes, Digests, int]:
    """A small file whole, proven by the locked digest: content, digests, retries. Errors as of fetch()."""
    watch = current_watch()
    retries = 0
    wrong = ""
    error: SteelyardError | None = None
    for line in lines:
        patience = Patience(patience_s)
        for _ in range(2):
            try:
                content = _small(line, file, patience, watch)
            except Trouble as trouble:
                error = as_error(trouble, line.endpoint, line.repo_id)
                break
            finally:
                retries += patience.retries
            arrival = Arrival(len(content), git=True)
            arrival.feed(content)
            digests = arrival.finish()
            if _is_right(file, digests):
                return content, digests, retries
            wrong = digests.sha256
    if wrong or error is None:
        raise Corrupt(
            path=file.path,
            why=f"the other side sends bytes with SHA-256 {wrong}, it published {file.etag}",
            hint="nothing was put under the final name; try again later",
            ranges=((0, file.size_bytes),),
        )
    raise error


def _small(line: Line, file: LockedFile, patience: Patience, watch: Watch) -> bytes:
    while True:
        try:
            return line.small(file)
        except Trouble as trouble:
            if not patience.endure(trouble, watch):
                raise
