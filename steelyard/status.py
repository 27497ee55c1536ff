"""status: what is held where, how it is, how full the disk is. Looks at records and stats only: no byte is read, no network is asked."""

from __future__ import annotations

from typing import Any

from steelyard.config import S3Config
from steelyard.copies.base import Look
from steelyard.copies.folder import FolderCopy
from steelyard.disk import free_bytes, gb, total_bytes
from steelyard.errors import BadRecord, SteelyardError
from steelyard.manifest import Manifest
from steelyard.protection import is_overdue, last_good, whole_copies
from steelyard.report import Report, Row
from steelyard.site import Site

_ORDER = ("missing", "corrupt", "unreadable", "stale", "unverified", "ok")


def status(site: Site) -> Report:
    """One row for each model in each copy; `store` and `models` beside them for programs."""
    report = Report("status")
    report.extra["store"] = {
        "models": str(site.config.store.models),
        "hf_home": str(site.config.store.hf_home),
        "free_bytes": free_bytes(site.config.store.models),
        "total_bytes": total_bytes(site.config.store.models),
        "used_bytes": 0,
        "min_free_bytes": site.config.store.min_free,
    }
    ready = {name: _why_not_ready(site, name) for name in site.copies}
    models: list[dict[str, Any]] = []
    with report.collecting():
        lock = site.lock()
        for name, wanted in site.config.models.items():
            held = lock.get(name)
            model: dict[str, Any] = {
                "model": name,
                "repo_id": wanted.repo_id,
                "revision": wanted.revision,
                "commit": held.commit if held else None,
            }
            copies: dict[str, dict[str, Any]] = {}
            if held is not None:
                manifest = site.manifest(name, held.commit)
                for copy in site.copies:
                    copies[copy] = _look(site, copy, manifest, [file.path for file in held.files], ready[copy])
                report.extra["store"]["used_bytes"] += manifest.size_bytes
            else:
                copies["store"] = {"verdict": "missing", "why": "never downloaded"}
            model["size_bytes"] = held.size_bytes if held else None
            model["files"] = len(held.files) if held else 0
            model["copies"] = copies
            for copy in site.replicas if held is not None else ():
                copies[copy] |= _ages(site, name, copy)
            model["verified_copies"] = _independent(site, name, copies) if held is not None else 0
            model["min_copies"] = wanted.min_copies
            last = site.history.events("check-updates", name, 1)
            model["update"] = {"verdict": last[0][2], "at": last[0][0]} if last else None
            models.append(model)
            for copy, seen in copies.items():
                report.rows.append(Row(name, "", copy, seen.get("path", ""), seen, 0))
    report.extra["models"] = models
    report.head = {"store": report.extra["store"], "models": models}
    return report.close()


def _why_not_ready(site: Site, copy: str) -> str:
    if isinstance(site.config.replicas.get(copy), S3Config):
        return ""  # status asks no network: S3 is judged by what was last proven
    try:
        site.copies[copy].ready(write=False)
    except SteelyardError as error:
        return error.message
    return ""


def _look(site: Site, copy: str, manifest: Manifest, paths: list[str], why_not: str) -> dict[str, Any]:
    """The worst verdict over the model's files, by stat and the last proof; and when all of it was last proven whole."""
    verdicts, proven = [], []
    where = site.copies[copy]
    for path in paths:
        entry = manifest.get(path)
        if entry is None:
            verdicts.append("unverified" if copy == "store" else "missing")
            continue
        good = site.history.latest(copy, manifest.model, manifest.commit, path, ok_only=True)
        proven.append(good.at if good else "")
        last = site.history.latest(copy, manifest.model, manifest.commit, path)
        if why_not:
            verdicts.append("unverified")
        elif isinstance(where, FolderCopy):
            try:
                verdicts.append(where.judge(manifest, entry, Look("quick"), last.finding if last else None).verdict)
            except (SteelyardError, KeyError):
                verdicts.append("unverified")
        else:
            verdicts.append(last.finding.verdict if last else "missing")
    worst = next((verdict for verdict in _ORDER if verdict in verdicts), "missing")
    seen: dict[str, Any] = {"verdict": worst, "commit": manifest.commit, "last_proven": min(proven) if proven and all(proven) else None}
    if isinstance(where, FolderCopy):
        seen["path"] = str(where.root)
    if why_not:
        seen |= {"why": why_not, "away": True}
    elif worst == "missing" and copy in site.replicas:
        try:
            older = isinstance(where, FolderCopy) and where.commits(manifest.model)
        except (SteelyardError, BadRecord, OSError):
            older = []
        if older:
            seen |= {"verdict": "stale", "why": f"it holds {older[-1][:8]}"}
    return seen


def _independent(site: Site, model: str, copies: dict[str, dict[str, Any]]) -> int:
    """Whole copies by the last proof and today's stat, those that die together once; a drive on the shelf counts until it is overdue."""
    known = whole_copies(site, model)
    return len({domain for name, domain in known.items() if copies[name]["verdict"] == "ok" or copies[name].get("away")})


def _ages(site: Site, model: str, copy: str) -> dict[str, Any]:
    """When a replica was last brought up to date, drive by drive."""
    good = last_good(site, model, copy)
    drives = [{"id": one.drive, "last_good_at": one.at.isoformat(), "age_s": round(one.age_s)} for one in good]
    return {"last_good_at": drives[0]["last_good_at"] if drives else None, "overdue": is_overdue(site, copy, good), "drives": drives}


def disk_line(report: Report) -> str:
    store = report.extra["store"]
    return f"store {store['models']}: {gb(store['used_bytes'])} held, {gb(store['free_bytes'])} free of {gb(store['total_bytes'])}"
