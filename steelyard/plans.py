"""The plan of an update: which files of which commit would be taken, under a digest. Who approves a digest approves just that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.disk import write_atomically
from steelyard.errors import BadRecord, Refused, UsageError
from steelyard.hub import Listing
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import record_digest, seal, unseal
from steelyard.names import confine
from steelyard.scans import GRAVE, rank, scan_of
from steelyard.site import Site

VERSION = 1
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class PlanChanged(Refused):
    """{model}: this is not the plan that was approved: {why}"""

    code = "plan-changed"
    hint = "read {path}; to take that: steelyard update {model} --plan {digest}"


@dataclass(frozen=True)
class UpdatePlan:
    """What an update would do: *changed* files are fetched, *kept* ones stay as they are, *gone* ones are no longer upstream."""

    model: str
    old: LockedModel
    new: LockedModel

    @property
    def changed(self) -> tuple[LockedFile, ...]:
        return tuple(file for file in self.new.files if (held := self.old.get(file.path)) is None or held.etag != file.etag)

    @property
    def gone(self) -> tuple[LockedFile, ...]:
        return tuple(file for file in self.old.files if self.new.get(file.path) is None)

    @property
    def cost_bytes(self) -> int:
        """Bytes of the changed files; what the held ones share with them need not be fetched."""
        return sum(file.size_bytes for file in self.changed)

    def as_record(self) -> dict[str, Any]:
        """The same upstream state gives the same record, whenever it is asked: no times, no costs that depend on this machine."""
        fetched = {
            file.path: {"size_bytes": file.size_bytes, **({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})}
            for file in self.changed
        }
        return {
            "steelyard_update_plan": VERSION,
            "model": self.model,
            "repo_id": self.new.repo_id,
            "revision": self.new.revision,
            "held_commit": self.old.commit,
            "upstream_commit": self.new.commit,
            "fetched": fetched,
            "fetched_bytes": self.cost_bytes,
            "kept": sorted(file.path for file in self.new.files if file.path not in fetched),
            "removed": sorted(file.path for file in self.gone),
            "flagged": rank(self.new.scan) >= GRAVE,
        }

    @property
    def digest(self) -> str:
        return record_digest(self.as_record())


def plan_from(site: Site, model: str, old: LockedModel, listing: Listing) -> UpdatePlan:
    """What taking *listing* would do: its files that the config asks for. :raises Gone: when one is not there. :raises UnsafeName:"""
    wanted = site.config.models[model]
    files = listing.matching(wanted.files)
    scan = scan_of(listing, [file.path for file in files])
    flagged = tuple(sorted(scan.flagged.items()))
    return UpdatePlan(model, old, LockedModel(wanted.repo_id, listing.revision, listing.commit, files, scan=scan.word, flagged=flagged))


def plan_path(site: Site, model: str) -> Path:
    return confine(site.store.ours / "plans", f"{model}.json")


def write_plan(site: Site, plan: UpdatePlan) -> Path:
    """Keep *plan* as the one that may be approved now: readable JSON, sealed by its digest."""
    path, content = plan_path(site, plan.model), seal(plan.as_record())
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return path


def read_digest(text: str) -> str:
    """*text* as a plan's digest. :raises UsageError:"""
    match = _DIGEST.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(why=f"{text[:100]!r} is not a plan's digest: sha256: and 64 hex digits", hint="steelyard check-updates tells it")
    return f"sha256:{match[1]}"


def hold_to_plan(site: Site, plan: UpdatePlan, approved: str) -> None:
    """Step: *plan* is what would be done now, and must be what was approved.

    :raises PlanChanged: when it is another one; it is written down then, to be approved in its turn.
    """
    if plan.digest == approved:
        return
    path = write_plan(site, plan)
    was = f"{approved.removeprefix('sha256:')[:12]}… was approved"
    why = f"{was}, {plan.new.revision} is {plan.new.commit[:8]} now and its plan is {plan.digest.removeprefix('sha256:')[:12]}…"
    raise PlanChanged(model=plan.model, why=why, path=str(path), digest=plan.digest)


def taken_already(site: Site, model: str, approved: str) -> str:
    """The commit that the approved plan led to, when that is what is held already; else nothing. Approving twice is no error."""
    path = plan_path(site, model)
    try:
        record = unseal(path.read_bytes(), path)
    except (OSError, BadRecord):
        return ""
    held = site.locked_model(model)
    to = str(record.get("upstream_commit", ""))
    return to if record.get("digest") == approved and held is not None and held.commit == to else ""
