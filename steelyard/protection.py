"""How many whole copies of a model there are: those that die together count once, and what was never proven does not count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from steelyard.copies.base import Copy
from steelyard.copies.folder import FolderCopy
from steelyard.copies.mount import MountReplica
from steelyard.errors import SteelyardError, TooFewCopies
from steelyard.report import Row
from steelyard.site import Site

log = logging.getLogger("steelyard")


@dataclass(frozen=True)
class LastGood:
    """When a replica was last brought up to date with a model; *drive* is the marker's id, "" where it had none."""

    at: datetime
    drive: str = ""

    @property
    def age_s(self) -> float:
        return max(0.0, (datetime.now(UTC) - self.at).total_seconds())


def last_good(site: Site, model: str, copy: str) -> list[LastGood]:
    """The last good backup of *model* on each drive of *copy*, latest first; empty when there never was one."""
    found: dict[str, LastGood] = {}
    for at, where, outcome, facts in site.history.events("backup", model, 1000):
        drive = str(facts.get("drive") or "")
        if where == copy and outcome == "ok" and drive not in found:
            found[drive] = LastGood(datetime.fromisoformat(at), drive)
    return list(found.values())


def age_text(age_s: float) -> str:
    """ "3 hours", "21 days"."""
    if age_s < 3600:
        return f"{age_s / 60:.0f} minutes"
    return f"{age_s / 3600:.0f} hours" if age_s < 2 * 86400 else f"{age_s / 86400:.0f} days"


def is_overdue(site: Site, copy: str, good: Sequence[LastGood]) -> bool:
    """Whether the last good backup is older than the replica's max_age, or there was none."""
    limit = site.config.replicas[copy].max_age
    return limit is not None and (not good or good[0].age_s > limit)


def whole_copies(site: Site, model: str) -> dict[str, str]:
    """Copies that hold the locked commit whole by their last proof -> what each dies with.

    A replica that is away counts as long as its last good backup is not overdue: a drive on the shelf is a copy, and the safest one.
    """
    locked = site.locked_model(model)
    if locked is None:
        return {}
    manifest = site.manifest(model, locked.commit)
    if not manifest.files or len(manifest.files) < len(locked.files):
        return {}
    found: dict[str, str] = {}
    for name, copy in site.copies.items():
        if not site.history.state(name, model, locked.commit):
            proofs = site.history.latest_of(name, model, locked.commit)
            if not all((proof := proofs.get(entry.path)) and proof.finding.ok for entry in manifest.files):
                continue
        try:
            if isinstance(copy, FolderCopy):
                copy.ready(write=False)
            found[name] = copy.failure_domain()
        except SteelyardError:
            if name in site.replicas and not is_overdue(site, name, last_good(site, model, name)):
                found[name] = f"the drive of {name}"
    return found


def check_copies(site: Site, model: str) -> None:
    """:raises TooFewCopies: when fewer whole copies on separate devices exist than the model's min_copies."""
    wanted = site.config.models[model].min_copies
    if wanted <= 1 or site.locked_model(model) is None:
        return  # one copy is what every other check is about
    whole = whole_copies(site, model)
    held = len(set(whole.values()))
    if held < wanted:
        shared = f" ({', '.join(whole)} share a device)" if len(whole) > held else ""
        raise TooFewCopies(model=model, held=f"{held} {'copy is' if held == 1 else 'copies are'}", wanted=wanted, shared=shared)


# --- what a backup says about it


def skipped(site: Site, chosen: Sequence[str], name: str, error: SteelyardError) -> list[Row]:
    """A row for each model with the age of its last good copy; past the replica's max_age it is overdue, and said loudly."""
    rows = []
    for model in chosen:
        good = last_good(site, model, name)
        age = f"its last good copy of {model} is {age_text(good[0].age_s)} old" if good else f"it never had a good copy of {model}"
        facts: dict[str, object] = {"action": "skipped", "why": f"{error.message}; {age}", "bytes_written": 0, "overdue": False}
        facts |= {"last_good_at": good[0].at.isoformat() if good else None, "age_s": round(good[0].age_s) if good else None}
        if is_overdue(site, name, good):
            facts["overdue"] = True
            log.error("%s is overdue: %s", name, age)
        else:
            log.warning("%s is skipped: %s; %s", name, error.message, age)
        rows.append(Row(model, "", name, "", facts, 0))
    return rows


def warn_of_weakness(site: Site, replica: Copy) -> None:
    """Say so where a replica protects less than it seems to."""
    if not isinstance(replica, MountReplica):
        return
    if replica.failure_domain() == site.store.failure_domain():
        log.warning("%s lies on the same disk as the store: it guards against mistakes, not against the death of the drive", replica.name)
    if replica.drive.point is not None and not replica.drive.ident():
        log.warning(
            "%s has no marker, so another drive mounted there would be taken for it; run: steelyard target %s", replica.name, replica.name
        )


def drives_of(site: Site, copy: str, good: Sequence[LastGood]) -> list[dict[str, object]]:
    """Every drive that a replica had a good backup on or that is known to its shelf, with its label and how far it is behind."""
    replica = site.replicas[copy]
    labels = replica.drive.shelf.labels() if isinstance(replica, MountReplica) and replica.drive.shelf is not None else {}
    limit = site.config.replicas[copy].max_age
    ages = {one.drive: one for one in good if not labels or one.drive in labels}
    found: list[dict[str, object]] = []
    for drive in dict.fromkeys([*ages, *labels]):
        last = ages.get(drive)
        overdue = limit is not None and (last is None or last.age_s > limit)
        facts: dict[str, object] = {"id": drive, "label": labels.get(drive) or None, "overdue": overdue}
        facts |= {"last_good_at": last.at.isoformat() if last else None, "age_s": round(last.age_s) if last else None}
        found.append(facts)
    return found


def tell_of_the_shelf(site: Site, chosen: Sequence[str], replica: Copy) -> list[Row]:
    """How far behind the replica's other drives are: a row each, overdue past the replica's max_age."""
    shelf = replica.drive.shelf if isinstance(replica, MountReplica) else None
    if shelf is None or not isinstance(replica, MountReplica) or not (set(shelf.known()) - {(here := replica.drive.ident())}):
        return []
    rows = []
    for model in chosen:
        for one in drives_of(site, replica.name, last_good(site, model, replica.name)):
            if one["id"] == here or not one["id"]:
                continue
            drive = f"drive {one['label'] or one['id']}"
            age_s = one["age_s"]
            why = f"{drive} is {age_text(float(str(age_s)))} behind" if age_s is not None else f"{drive} never had it"
            log.log(logging.ERROR if one["overdue"] else logging.WARNING, "%s: %s (%s)", replica.name, why, model)
            facts = {"action": "skipped", "why": why, "bytes_written": 0, "drive": one["label"] or one["id"]}
            facts |= {key: one[key] for key in ("overdue", "last_good_at", "age_s")}
            rows.append(Row(model, "", replica.name, "", facts, 0))
    return rows
