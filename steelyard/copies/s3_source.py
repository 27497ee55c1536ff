"""The bytes of an object, read by range; a read that breaks off goes on from the byte it reached."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from blake3 import blake3

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import Seen
from steelyard.errors import BadAnswer, Gone, Missing, Unreachable, Unreadable
from steelyard.manifest import FileEntry
from steelyard.watch import Watch, current_watch
from steelyard.weather import Patience, Reaction, Trouble

READ_BYTES = 1 << 20


class S3Source:
    """An object as it was *seen*: every range is asked for with its ETag, so a changed object is an error and never a mix.

    With *entry*, a range that is exactly one of its pieces and does not verify is fetched once more, alone: what was damaged on the way comes right,
    what is damaged there stays so. Unproven all the same: whoever reads it judges it.
    """

    remote = True

    def __init__(
        self, bucket: Bucket, seen: Seen, entry: FileEntry | None = None, watch: Watch | None = None, patience_s: float | None = None
    ) -> None:
        self.bucket = bucket
        self.seen = seen
        self.refetched = 0
        """Pieces that were fetched once more."""
        self._patience_s = bucket.patience_s if patience_s is None else patience_s
        self._watch = watch or current_watch()
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
        length = max(0, min(len(buffer), self.size_bytes - offset))
        self._fetch(offset, buffer[:length])
        end, piece = self._piece_at.get(offset, (0, ""))
        if end == offset + length and blake3(buffer[:length]).hexdigest() != piece:
            self.refetched += 1
            self._fetch(offset, buffer[:length])
        return length

    def _fetch(self, offset: int, view: memoryview) -> None:
        patience = Patience(self._patience_s)
        done = 0
        while done < len(view):
            try:
                done = self._some(offset, view, done, patience)
            except Unreachable as error:
                if not patience.endure(Trouble(Reaction("weather", what=error.message), retry_after_s=error.retry_after_s), self._watch):
                    raise

    def _some(self, offset: int, view: memoryview, done: int, patience: Patience) -> int:
        """Read on from *done* as far as one answer goes. :raises Unreachable: when it breaks off; what came before counts."""
        first, last = offset + done, offset + len(view) - 1
        condition: dict[str, Any] = {"IfMatch": f'"{self.seen.etag}"'} if self.seen.etag else {}
        if self.seen.version:
            condition["VersionId"] = self.seen.version
        try:
            answer = self.bucket.call(
                "get_object",
                expect={"missing", "conflict", "range", "archived"},
                watch=self._watch,
                patience_s=self._patience_s,
                Key=self.seen.key,
                Range=f"bytes={first}-{last}",
                **condition,
            )
        except Told as told:
            raise self._refused(told, first, last + 1) from told
        begins = str(answer.get("ContentRange", "")).removeprefix("bytes ").partition("-")[0]
        if begins != str(first):
            answer["Body"].close()
            raise BadAnswer(
                who=self.bucket.who, why=f"asked for bytes from {first} on it sent another range ({answer.get('ContentRange', 'none')})"
            )
        body, at = answer["Body"], done
        try:
            with self.bucket.errors():
                while at < len(view):
                    self._watch.check()
                    got = body.readinto(view[at : at + READ_BYTES])
                    if not got:
                        raise Unreachable(who=self.bucket.who, why="the answer ended early")
                    at += got
                    patience.progress(got)
        except Unreachable:
            if at == done:
                raise
            # Bytes came: go on behind them at once.
        finally:
            body.close()
        return at

    def _refused(self, told: Told, start: int, end: int) -> Exception:
        if told.kind == "missing":
            return Missing(path=self.name)
        if told.kind == "archived":
            hint = f"ask it back: aws s3api restore-object --bucket {self.bucket.name} --key '{self.seen.key}' --restore-request Days=3"
            return Unreadable(path=self.name, why="it lies in an archive and was not asked back", ranges=((start, end),), hint=hint)
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
