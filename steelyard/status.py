"""status: what is held where, how it is, what could be restored now, how full the disk is. Looks at records and stats only: no byte is read, no
network is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from steelyard.disk import free_bytes, gb, total_bytes
from steelyard.history import Event
from steelyard.licence import licence_of
from steelyard.lock import LockedModel
from steelyard.looking import Looks
from steelyard.protection import drives_of, is_overdue, last_good
from steelyard.report import Report, Row
from steelyard.restorable import Drilled, from_copy, of_model
from steelyard.site import Site


def status(site: Site) -> Report:
    """One row for each model in each copy; `store`, `models` and `restorable` beside them for programs."""
    report = Report("status")
    store = report.extra["store"] = _store(site)
    models: list[dict[str, Any]] = []
    now = datetime.now(UTC)
    with report.collecting(), site.history.reading():
        lock, looks = site.lock(), Looks(site)
        report.extra["files"] = looks.files
        drills = _drills(site.history.recent("drill"))
        updates = {one.model: one for one in reversed(site.history.recent("check-updates"))}
        for name, wanted in site.config.models.items():
            held = lock.get(name)
            copies = _copies(site, looks, name, held)
            if held is not None:
                store["used_bytes"] += site.manifest(name, held.commit).size_bytes
            last = updates.get(name)
            sources = [
                from_copy(
                    copy,
                    copies[copy],
                    drills.get((name, copy), []),
                    commit=held.commit if held else "",
                    limit_s=wanted.restorable_within,
                    now=now,
                )
                for copy in site.replicas
                if copy in copies
            ]
            restorable = of_model(sources, limit_s=wanted.restorable_within, held=held is not None, configured=bool(site.replicas))
            models.append(
                {
                    "model": name,
                    "repo_id": wanted.repo_id,
                    "revision": wanted.revision,
                    "commit": held.commit if held else None,
                    "size_bytes": held.size_bytes if held else None,
                    "files": len(held.files) if held else 0,
                    "licence": licence_of(site, name, held) if held else None,
                    "copies": copies,
                    "verified_copies": _independent(looks, copies),
                    "min_copies": wanted.min_copies,
                    "update": {"verdict": last.outcome, "at": last.at} if last else None,
                    "restorable": restorable,
                }
            )
            report.rows += [Row(name, "", copy, seen.get("path", ""), seen, 0) for copy, seen in copies.items()]
    report.extra["models"] = models
    report.extra["restorable"] = {model["model"]: model["restorable"] for model in models}
    report.extra["at"] = now.isoformat(timespec="seconds")
    report.head = {"store": store, "models": models}
    return report.close()


def _store(site: Site) -> dict[str, Any]:
    place = site.config.store.models
    return {
        "models": str(place),
        "hf_home": str(site.config.store.hf_home),
        "free_bytes": free_bytes(place),
        "total_bytes": total_bytes(place),
        "used_bytes": 0,
        "min_free_bytes": site.config.store.min_free,
        "warn_free_bytes": site.config.disk.warn_free,
        "error_free_bytes": site.config.disk.error_free,
    }


def _copies(site: Site, looks: Looks, model: str, held: LockedModel | None) -> dict[str, dict[str, Any]]:
    if held is None:
        return {"store": {"verdict": "missing", "why": "never downloaded"}}
    manifest = site.manifest(model, held.commit)
    paths = [file.path for file in held.files]
    copies = {copy: looks.at(copy, manifest, paths) for copy in site.copies}
    for copy in site.replicas:
        copies[copy] |= _ages(site, model, copy)
    return copies


def _drills(events: list[Event]) -> dict[tuple[str, str], list[Drilled]]:
    """By model and copy, latest first."""
    found: dict[tuple[str, str], list[Drilled]] = {}
    for one in events:
        seconds = one.facts.get("seconds")
        drilled = Drilled(
            one.at, one.outcome == "ok", str(one.facts.get("commit") or ""), float(str(seconds)) if seconds is not None else None
        )
        found.setdefault((one.model, one.copy), []).append(drilled)
    return found


def _independent(looks: Looks, copies: dict[str, dict[str, Any]]) -> int:
    """Whole copies by the last proof and today's stat, those that die together once; a drive on the shelf counts until it is overdue."""
    whole = {
        looks.domain(name)
        for name, seen in copies.items()
        if (seen["verdict"] == "ok" and not seen.get("away"))
        or (seen.get("away") and seen.get("last_proven") and not seen.get("overdue", True))
    }
    return len(whole)


def _ages(site: Site, model: str, copy: str) -> dict[str, Any]:
    """When a replica was last brought up to date, drive by drive."""
    good = last_good(site, model, copy)
    drives = drives_of(site, copy, good)
    return {"last_good_at": good[0].at.isoformat() if good else None, "overdue": is_overdue(site, copy, good), "drives": drives}


def disk_line(report: Report) -> str:
    store = report.extra["store"]
    return f"store {store['models']}: {gb(store['used_bytes'])} held, {gb(store['free_bytes'])} free of {gb(store['total_bytes'])}"
