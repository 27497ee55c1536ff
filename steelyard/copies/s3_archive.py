"""Objects whose bytes lie in an archive (GLACIER, DEEP_ARCHIVE): asked back once, remembered, and read by a later run."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_errors import Told
from steelyard.copies.s3_objects import Seen
from steelyard.disk import make_folder, write_atomically
from steelyard.errors import Archived, BadRecord
from steelyard.manifest import seal, unseal

_FLEXIBLE = {"Expedited": timedelta(minutes=5), "Standard": timedelta(hours=5), "Bulk": timedelta(hours=12)}
_DEEP = {"Standard": timedelta(hours=12), "Bulk": timedelta(hours=48)}
_LONGEST = timedelta(hours=48)
WAITS = {"GLACIER": _FLEXIBLE, "ARCHIVE_ACCESS": _FLEXIBLE, "DEEP_ARCHIVE": _DEEP, "DEEP_ARCHIVE_ACCESS": _DEEP}
"""By what time S3 says that an object is usually back, by its class and the tier asked for."""


class Archive:
    """Asks objects of one bucket back. Its record says when that was done; lost, it costs a request and the hour in the sentence. Safe from any thread."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self._bucket = bucket
        self._path = folder / "archive" / f"{bucket.identity}.json"
        self._lock = threading.Lock()
        self._told_now: dict[tuple[str, str], Archived] = {}

    def ask_back(self, seen: Seen) -> Archived:
        """Have the store begin to bring an object back, unless it is at it already; the error that says when to come again.

        :raises AccessDenied: where the credentials may not (s3:RestoreObject). :raises Unreachable:
        """
        with self._lock:
            if (told := self._told_now.get((seen.key, seen.etag))) is not None:
                return told  # *seen* is older than our asking
            asked = self._load()
            before = asked.get(seen.key)
            if seen.on_its_way and before is not None and before["etag"] == seen.etag:
                return self._told(seen, datetime.fromisoformat(before["at"]), before["tier"])
            if seen.on_its_way:
                return self._told(seen, None, "")
            settings = self._bucket.settings
            request: dict[str, Any] = {"GlacierJobParameters": {"Tier": settings.archive_tier}}
            if not seen.archive_status:  # Intelligent-Tiering brings it back for good
                request["Days"] = settings.archive_days
            version: dict[str, Any] = {"VersionId": seen.version} if seen.version else {}
            with contextlib.suppress(Told):  # another run asked a moment ago
                self._bucket.call("restore_object", expect={"under-way"}, Key=seen.key, RestoreRequest=request, **version)
            now = datetime.now(UTC)
            asked[seen.key] = {"etag": seen.etag, "at": now.isoformat(timespec="seconds"), "tier": settings.archive_tier}
            self._keep(asked, now)
            told = self._told_now[(seen.key, seen.etag)] = self._told(seen, now, settings.archive_tier)
            return told

    def _told(self, seen: Seen, at: datetime | None, tier: str) -> Archived:
        kind = seen.archive_status or seen.storage_class
        what = f"{seen.key} lies in {kind}"
        hint = "run the same command again then; what has arrived is kept"
        if at is None:
            longest = max(WAITS.get(kind, {"": _LONGEST}).values())
            when = f"it was asked back already and is on its way; that takes up to {_hours(longest)}"
            return Archived(who=self._bucket.who, what=what, when=when, hint=hint)
        ready = at + WAITS.get(kind, {}).get(tier, _LONGEST)
        shown, ask = (one.astimezone().strftime("%Y-%m-%d %H:%M") for one in (ready, at))
        when = f"it was asked back on {ask} ({tier}); come again after {shown}"
        return Archived(who=self._bucket.who, what=what, when=when, ready_at=ready.isoformat(timespec="seconds"), hint=hint)

    def _load(self) -> dict[str, dict[str, str]]:
        try:
            found = unseal(self._path.read_bytes(), self._path)["asked"]
            return {str(key): {name: str(one[name]) for name in ("etag", "at", "tier")} for key, one in found.items()}
        except (OSError, BadRecord, KeyError, TypeError, AttributeError):
            return {}

    def _keep(self, asked: dict[str, dict[str, str]], now: datetime) -> None:
        """Write the record, less what is older than a year: no archive keeps an object awake for longer."""
        young = {key: one for key, one in asked.items() if now - datetime.fromisoformat(one["at"]) < timedelta(days=366)}
        make_folder(self._path.parent)
        write_atomically(self._path, seal({"asked": young}))


def _hours(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours:.0f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
