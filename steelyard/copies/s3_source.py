"""The bytes of an object, read by range; a read that breaks off goes on from the byte it reached."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from blake3 import blake3

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import Seen
from steelyard.copies.s3_ranges import Ranges
from steelyard.errors import BadAnswer, Gone, Missing, SteelyardError, Unreachable
from steelyard.manifest import FileEntry
from steelyard.pace import Throttle
from steelyard.stream import Stream
from steelyard.watch import Watch, current_watch
from steelyard.weather import Patience, Reaction, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 1 << 18
"""What is read and digested at once: it is still in the processor's cache then."""
MOMENT_S = 0.5
"""For so long at most a slow line is listened to before somebody asks whether the run is to stop."""
SILENCE_BEFORE_S = 3.0
SILENCES = 4
SILENT_S = 60.0
"""A store that has lost bytes may send some, think for seconds and break off, time and again: SeaweedFS takes a quarter of an hour for a piece of 8 MiB
so. After so many answers in a row that fell silent for so long, and so long in all, the piece is one that can't be had [s]."""
FULL_SPEED = Throttle()


class S3Source:
    """An object as it was *seen*: every range is asked for with its ETag, so a changed object is an error and never a mix.

    With *entry*, a range that is exactly one of its pieces and does not verify is fetched once more, alone: what was damaged on the way comes right,
    what is damaged there stays so. Unproven all the same: whoever reads it judges it.
    *asleep* makes the error that tells when bytes in an archive can be had; it is called when somebody really wants them.
    """

    remote = True

    def __init__(
        self,
        bucket: Bucket,
        seen: Seen,
        entry: FileEntry | None = None,
        watch: Watch | None = None,
        patience_s: float | None = None,
        *,
        asleep: Callable[[], SteelyardError] | None = None,
        throttle: Throttle = FULL_SPEED,
    ) -> None:
        self.bucket = bucket
        self.seen = seen
        self.refetched = 0
        """Pieces that were fetched once more."""
        self._patience_s = bucket.patience_s if patience_s is None else patience_s
        self._watch = watch or current_watch()
        self._asleep = asleep
        self._throttle = throttle
        condition: dict[str, Any] = {"IfMatch": f'"{seen.etag}"'} if seen.etag else {}
        if seen.version:
            condition["VersionId"] = seen.version
        self._ranges = Ranges(bucket, {"Key": seen.key, **condition})
        self._piece_at: dict[int, tuple[int, str]] = {}
        if entry is not None:
            self._piece_at = {start: (end, piece) for (start, end), piece in zip(entry.ranges, entry.pieces, strict=True)}

    @property
    def name(self) -> str:
        return f"s3://{self.bucket.name}/{self.seen.key}"

    @property
    def size_bytes(self) -> int:
        return self.seen.size_bytes

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """:raises Unreachable: when the weather outlasts our patience. :raises BadAnswer: when the object changed. :raises Missing: when it went away."""
        return self.read_digested(offset, buffer)[0]

    def read_digested(self, offset: int, buffer: memoryview) -> tuple[int, str]:
        """readinto(), and the BLAKE3 of what came, taken while it came."""
        length = max(0, min(len(buffer), self.size_bytes - offset))
        digest = self._fetch(offset, buffer[:length])
        end, piece = self._piece_at.get(offset, (0, ""))
        if end == offset + length and digest != piece:
            self.refetched += 1
            digest = self._fetch(offset, buffer[:length])
        return length, digest

    @property
    def last_resort(self) -> bool:
        """It lies in an archive: every other copy is asked first."""
        return self._asleep is not None

    @property
    def connections(self) -> int:
        """How many ranges are well read at once."""
        return self.bucket.settings.connections

    def _fetch(self, offset: int, view: memoryview) -> str:
        if self._asleep is not None:
            raise self._asleep()
        patience = Patience(self._patience_s)
        digest = blake3()
        done = silences = 0
        began = time.monotonic()
        while done < len(view):
            try:
                done, fell_silent = self._some(offset, view, done, patience, digest)
            except Unreachable as error:
                if not patience.endure(Trouble(Reaction("weather", what=error.message), retry_after_s=error.retry_after_s), self._watch):
                    raise
                continue
            silences = silences + 1 if fell_silent else 0
            if silences >= SILENCES and time.monotonic() - began >= SILENT_S:
                why = f"of {self.seen.key} it sends a little from byte {offset + done} on, falls silent and breaks off, time and again"
                raise Unreachable(who=self.bucket.who, why=why)
        return digest.hexdigest()

    def _some(self, offset: int, view: memoryview, done: int, patience: Patience, digest: blake3) -> tuple[int, bool]:
        """Read on from *done* as far as one answer goes, and whether it fell silent and broke off there; what came before counts.

        :raises Unreachable: when nothing came.
        """
        first, last = offset + done, offset + len(view) - 1
        try:
            answer, sent = self._ranges.ask(first, last, self._watch, self._patience_s)
        except Told as told:
            raise self._refused(told) from told
        begins = sent.removeprefix("bytes ").partition("-")[0]
        if begins != str(first):
            answer.close()
            raise BadAnswer(who=self.bucket.who, why=f"asked for bytes from {first} on it sent another range ({sent or 'none'})")
        body, at, asked = Stream(answer, first, last + 1), done, 0.0
        try:
            while at < len(view):
                self._watch.check()
                asked = time.monotonic()
                got, trouble = body.fill(view[at : at + READ_BYTES], MOMENT_S)
                if got:
                    digest.update(view[at : at + got])
                    at += got
                    patience.progress(got)
                    self._throttle.take(got, self._watch)
                if trouble is not None:
                    raise trouble
        except Trouble as trouble:
            if at == done:
                raise Unreachable(who=self.bucket.who, why=str(trouble)) from trouble
            # Bytes came: go on behind them at once.
            return at, time.monotonic() - asked >= SILENCE_BEFORE_S
        finally:
            body.close()
            self.bucket.came(at - done)
        return at, False

    def _refused(self, told: Told) -> Exception:
        if told.kind == "missing":
            return Missing(path=self.name)
        if told.kind == "archived":
            # HEAD did not say so: a store that tells an object's class by refusing it.
            return Gone(who=self.bucket.who, why=f"{self.seen.key} lies in an archive that can't be read now", hint=archive_hint(self))
        if told.kind == "conflict":
            return BadAnswer(
                who=self.bucket.who, why=f"{self.seen.key} was changed while it was being read", hint="run the same command again"
            )
        return Gone(who=self.bucket.who, why=f"{self.seen.key} is shorter than it said")

    def close(self) -> None:
        """Nothing is held between reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def archive_hint(source: S3Source) -> str:
    key = source.seen.key.replace("'", "'\\''")
    return f"ask it back: aws s3api restore-object --bucket {source.bucket.name} --key '{key}' --restore-request Days=7"
