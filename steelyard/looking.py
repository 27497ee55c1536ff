"""A look at every copy without reading a byte or asking the network: presence and state on disk against the last proof."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from steelyard.config import S3Config
from steelyard.copies.base import Look
from steelyard.copies.folder import FolderCopy
from steelyard.errors import BadRecord, SteelyardError
from steelyard.manifest import Manifest
from steelyard.site import Site

_ORDER = ("missing", "corrupt", "unreadable", "stale", "unverified", "ok")


@dataclass
class Looks:
    """Looks at the copies of *site*; what is the same for every model (is the drive there, on which disk) is found out once."""

    site: Site
    _why_not: dict[str, str] = field(default_factory=dict)
    _domains: dict[str, str] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    """Of every file looked at: when it was last found whole, and by what (None: never)."""

    def why_not(self, copy: str) -> str:
        """Why *copy* can't be looked at now; "" where it can. S3 is never asked: it is judged by what was last proven."""
        if copy not in self._why_not:
            self._why_not[copy] = ""
            if not self._is_s3(copy):
                try:
                    self.site.copies[copy].ready(write=False)
                except SteelyardError as error:
                    # Made for a backup that was asked for; here nothing was to be written.
                    self._why_not[copy] = error.message.removeprefix(f"{copy}: ").removesuffix(", so nothing was written")
        return self._why_not[copy]

    def domain(self, copy: str) -> str:
        """What *copy* dies with."""
        if copy not in self._domains:
            settings = self.site.config.replicas.get(copy)
            if isinstance(settings, S3Config):
                self._domains[copy] = f"s3 {settings.endpoint_url or 'aws'}/{settings.bucket}"
            elif self.why_not(copy):
                self._domains[copy] = f"the drive of {copy}"
            else:
                self._domains[copy] = self.site.copies[copy].failure_domain()
        return self._domains[copy]

    def at(self, copy: str, manifest: Manifest, paths: Iterable[str]) -> dict[str, Any]:
        """The worst verdict over *paths*, with the file it is about; and when all of them were last proven whole (None: never all)."""
        site, why_not = self.site, self.why_not(copy)
        whole = site.history.whole_since(copy, manifest.model, manifest.commit)
        last = site.history.latest_of(copy, manifest.model, manifest.commit)
        entries = {entry.path: entry for entry in manifest.files}
        s3 = self._is_s3(copy)
        where = None if s3 else site.copies[copy]
        worst, at_file, proven = "ok", "", []
        for path in paths:
            verdict, entry, seen = "unverified", entries.get(path), last.get(path)
            at, proof = whole.get(path, ("", ""))
            proven.append(at)
            self.files.append({"model": manifest.model, "file": path, "copy": copy, "last_proven": at or None, "proof": proof or None})
            if entry is None:
                verdict = "unverified" if copy == "store" else "missing"
            elif s3:
                verdict = seen.finding.verdict if seen else "missing"
            elif not why_not and isinstance(where, FolderCopy):
                try:
                    verdict = where.judge(manifest, entry, Look("quick"), seen.finding if seen else None).verdict
                except (SteelyardError, KeyError):
                    verdict = "unverified"
            if not at_file or _ORDER.index(verdict) < _ORDER.index(worst):
                worst, at_file = verdict, path
        found: dict[str, Any] = {"verdict": worst if proven else "missing", "commit": manifest.commit, "last_proven": None}
        if proven and all(proven):
            found["last_proven"] = min(proven)
        if worst != "ok" and len(proven) > 1:
            found["file"] = at_file
        if isinstance(where, FolderCopy):
            found["path"] = str(where.root)
        if why_not:
            found |= {"why": why_not, "away": True}
        elif worst == "missing" and copy in site.replicas and (older := self._older(copy, manifest.model)):
            found |= {"verdict": "stale", "why": f"it holds {older[:8]}"}
        return found

    def _is_s3(self, copy: str) -> bool:
        return isinstance(self.site.config.replicas.get(copy), S3Config)

    def _older(self, copy: str, model: str) -> str:
        """The newest snapshot that the replica has of *model*, where there is one."""
        where = None if self._is_s3(copy) else self.site.copies[copy]
        try:
            commits = where.commits(model) if isinstance(where, FolderCopy) else []
        except (SteelyardError, BadRecord, OSError):
            return ""
        return commits[-1] if commits else ""
