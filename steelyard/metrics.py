"""The picture as metrics in Prometheus' text format. Ages are told as the time of the event (Unix seconds): time() - metric is the age."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from steelyard import __version__
from steelyard.disk import write_atomically
from steelyard.page.picture import Picture

STATES = ("green", "amber", "unknown", "red")
VERDICTS = ("ok", "missing", "corrupt", "unreadable", "stale", "unverified")


def write_metrics(path: Path, picture: Picture) -> Path:
    """The metrics at *path*: the old ones or the new stand there, so that a scrape never reads half. :raises Refused: and its kind."""
    write_atomically(path, render_metrics(picture))
    return path


def render_metrics(picture: Picture) -> bytes:
    """What never was has no sample: an age that is absent is "never", not 0."""
    registry = CollectorRegistry()

    def gauge(name: str, about: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"steelyard_{name}", about, labels, registry=registry)

    gauge("info", "The program that wrote this.", ["version"]).labels(__version__).set(1)
    gauge("written_timestamp_seconds", "When this was written.").set(picture.at.timestamp())
    _models(picture, gauge)
    _disks(picture, gauge)
    last: dict[str, Any] = {}
    for run in picture.runs:
        last.setdefault(run.verb, run)
    ended = gauge("run_timestamp_seconds", "When a verb last ended.", ["verb"])
    took = gauge("run_seconds", "How long a verb last took.", ["verb"])
    code = gauge("run_exit_code", "How a verb last ended; 0 is all well.", ["verb"])
    for verb, run in last.items():
        ended.labels(verb).set(run.at.timestamp())
        took.labels(verb).set(run.seconds)
        code.labels(verb).set(run.code)
    return generate_latest(registry)


def _models(picture: Picture, gauge: Any) -> None:
    size = gauge("model_bytes", "Size of the locked revision.", ["model"])
    whole = gauge("model_whole_copies", "Whole copies, those that die together once.", ["model"])
    least = gauge("model_min_copies", "Whole copies that the config asks for.", ["model"])
    state = gauge("model_restorable", "1 for the state that holds: what could be restored now.", ["model", "state"])
    limit = gauge("model_restorable_within_seconds", "The model's limit for the age of proof and drill.", ["model"])
    update = gauge("model_update_available", "1 where upstream has another revision, by the last check.", ["model"])
    verdict = gauge(
        "copy_verdict", "1 for the verdict that holds, by presence, size, times and the last proof.", ["model", "copy", "verdict"]
    )
    proven = gauge("copy_proven_timestamp_seconds", "When every file of the copy had last been proven whole.", ["model", "copy"])
    backed_up = gauge("copy_backup_timestamp_seconds", "When the replica was last brought up to date.", ["model", "copy"])
    drilled = gauge("drill_timestamp_seconds", "When a drill last brought the model back.", ["model", "copy"])
    took = gauge("drill_seconds", "How long that drill took.", ["model", "copy"])
    for model in picture.models:
        name = model["model"]
        size.labels(name).set(model["size_bytes"] or 0)
        whole.labels(name).set(model["verified_copies"])
        least.labels(name).set(model["min_copies"])
        limit.labels(name).set(model["restorable"]["limit_s"])
        for one in STATES:
            state.labels(name, one).set(model["restorable"]["state"] == one)
        if model["update"]:
            update.labels(name).set(model["update"]["verdict"] == "update-available")
        for copy, seen in model["copies"].items():
            for one in VERDICTS:
                verdict.labels(name, copy, one).set(seen["verdict"] == one)
            _when(proven, (name, copy), seen.get("last_proven"))
            _when(backed_up, (name, copy), seen.get("last_good_at"))
        for copy, told in model["restorable"]["copies"].items():
            _when(drilled, (name, copy), told["drill_at"])
            if told["drill_seconds"] is not None:
                took.labels(name, copy).set(told["drill_seconds"])


def _when(gauge: Gauge, labels: tuple[str, ...], at: str | None) -> None:
    if at:
        gauge.labels(*labels).set(datetime.fromisoformat(at).timestamp())


def _disks(picture: Picture, gauge: Any) -> None:
    free = gauge("disk_free_bytes", "What an ordinary user may still write.", ["point"])
    total = gauge("disk_bytes", "Size of the file system.", ["point"])
    used = gauge("disk_used_bytes", "Real bytes on the medium by what they are.", ["point", "kind"])
    inodes = gauge("disk_inodes_free", "Inodes that are free.", ["point"])
    errors = gauge("disk_io_errors", "I/O errors that the kernel has counted.", ["point"])
    level = gauge("disk_level", "0 ok, 1 warning, 2 error.", ["point"])
    full = gauge("disk_full_timestamp_seconds", "When it is full if it goes on like this.", ["point"])
    for disk in picture.disks:
        seen, point = disk.seen, disk.seen.where.point
        free.labels(point).set(seen.where.free_bytes)
        total.labels(point).set(seen.where.total_bytes)
        level.labels(point).set(("ok", "warning", "error").index(seen.level))
        for kind, size in seen.usage.kinds.items():
            used.labels(point, kind).set(size)
        if seen.where.inodes:
            inodes.labels(point).set(seen.where.inodes_free)
        if seen.health.io_errors is not None:
            errors.labels(point).set(seen.health.io_errors)
        if seen.trend and (day := seen.trend.day(seen.trend.days_left)):
            full.labels(point).set(day.timestamp())
