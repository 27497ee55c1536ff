"""What backup says of replicas in buckets: the plan before, what was asked and moved after, and the hours in which a line may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from steelyard.config import S3Config
from steelyard.disk import gb
from steelyard.errors import OutsideHours
from steelyard.manifest import FileEntry, Manifest
from steelyard.money import MONTH_DAYS, Shape, monthly
from steelyard.site import Site

if TYPE_CHECKING:
    from steelyard.copies.s3 import S3Replica


def bucket_of(site: Site, name: str) -> S3Replica | None:
    """The replica *name*, where it is one in a bucket."""
    return cast("S3Replica", site.replicas[name]) if isinstance(site.config.replicas.get(name), S3Config) else None


def closed(site: Site, name: str, now: datetime | None = None) -> OutsideHours | None:
    """Why a scheduled round leaves *name* alone now; None where it may use the line."""
    settings = site.config.replicas.get(name)
    if not isinstance(settings, S3Config) or settings.window is None:
        return None
    at = now or datetime.now()
    if settings.window.is_open(at):
        return None
    opens = settings.window.opens(at)
    why = f"{name} is used from {settings.window} in scheduled rounds; it is next open at {opens:%H:%M}"
    return OutsideHours(why=why, hint=f"at once, whatever the hour: steelyard backup --to {name}")


def keep_to_hours(site: Site, name: str, *, by_name: bool) -> None:
    """A round also ends when the window closes on it; who asked for the replica by name is not kept to it."""
    replica = bucket_of(site, name)
    if replica is not None:
        replica.bucket.hours = None if by_name else replica.settings.window


def shapes(site: Site, names: Sequence[str]) -> dict[str, Shape]:
    """What was asked of each bucket so far."""
    return {name: replica.bucket.shape for name in names if (replica := bucket_of(site, name)) is not None}


def tell_traffic(site: Site, before: Mapping[str, Shape]) -> dict[str, dict[str, Any]]:
    """Requests by kind, bytes each way and, with prices, what that came to, by replica."""
    return {name: (shape - before[name]).as_json(site.config.prices.get(name)) for name, shape in shapes(site, list(before)).items()}


def plan_traffic(site: Site, name: str, todo: Mapping[str, tuple[Manifest, Sequence[FileEntry]]]) -> dict[str, Any]:
    """What bringing *todo* (by model) into *name* will take; with prices also what a month of the replica then costs."""
    told: dict[str, Any] = {
        "files": sum(len(entries) for _, entries in todo.values()),
        "bytes": sum(entry.size_bytes for _, entries in todo.values() for entry in entries),
    }
    replica = bucket_of(site, name)
    if replica is None:
        return told
    shape = Shape()
    for manifest, entries in todo.values():
        shape += replica.plan_shape(manifest, entries)
    prices = site.config.prices.get(name)
    told |= shape.as_json(prices)
    if replica.settings.bandwidth:
        told["seconds"] = round(shape.bytes_up / replica.settings.bandwidth)
    if (late := closed(site, name)) is not None:
        told["window"] = late.message
    if prices is not None:
        stored = replica.stored_bytes() + told["bytes"]
        told["month"] = monthly(prices, stored, read_back_bytes(replica.settings, stored))
    return told


def read_back_bytes(settings: S3Config, stored_bytes: int) -> int:
    """What a month of scrubs reads of a bucket with *stored_bytes*, as far as the config sets a pace."""
    daily = [stored_bytes / settings.proof_days] if settings.proof_days else []
    daily += [settings.egress_per_day] if settings.egress_per_day is not None else []
    return int(min(daily, default=0) * MONTH_DAYS)


def sentence(name: str, told: Mapping[str, Any], *, ahead: bool) -> str:
    """One line for a person, of a plan (*ahead*) or of what was done."""
    requests = sum(told.get("requests", {}).values())
    parts = []
    if ahead:
        parts.append(f"{told['files']} files, {gb(told['bytes'])}")
    if "requests" in told:
        parts.append(f"{requests:,} requests")
        parts.append(f"{gb(told['bytes_up'])} up" + (f", {gb(told['bytes_down'])} down" if told["bytes_down"] else ""))
    if "cost" in told:
        parts.append(f"{told['cost']['amount']:.4f} {told['cost']['currency']}")
    if "month" in told:
        parts.append(f"then {told['month']['amount']:.2f} {told['month']['currency']} a month")
    if told.get("seconds"):
        parts.append(f"{told['seconds'] / 3600:.1f} hours at its bandwidth")
    return f"{name}: {', '.join(parts)}"
