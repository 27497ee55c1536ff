"""target: put the marker on a replica's drive or bucket, and find out what it can do.

The marker says which drive this is; our side remembers its id. From then on a backup refuses to write to another drive, or to the same folder with
no drive there. Several drives may be known under one name (a shelf of drives that take turns). Only this command makes a marker, never a backup.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING

from steelyard.abilities import probe
from steelyard.copies.marker import MARKER, Marker, Shelf, read_marker
from steelyard.copies.mount import MountReplica
from steelyard.disk import write_atomically
from steelyard.errors import BadRecord, Refused, UsageError
from steelyard.names import OURS
from steelyard.report import Report, Row

if TYPE_CHECKING:
    from steelyard.copies.s3 import S3Replica
    from steelyard.site import Site

log = logging.getLogger("steelyard")


def shelf_of(site: Site, name: str) -> Shelf:
    return Shelf(site.store.ours / "targets" / f"{name}.json")


def target(site: Site, name: str, *, label: str | None = None, forget: str | None = None, versioning: bool = False) -> Report:
    """Mark the drive (or bucket) that replica *name* has now, probe it, and remember its id; *forget*: no longer expect the drive of that id.

    *label* is what people call this drive ("B"). *versioning*: have the bucket keep older versions from now on; it is never turned on otherwise.

    A marker that is there is kept, so this may be run again. A second drive under one name joins the shelf.
    """
    report = Report("target")
    replica = site.replica(name)
    shelf = shelf_of(site, name)
    if forget is not None:
        fitting = [ident for ident, named in shelf.labels().items() if ident.startswith(forget) or named == forget]
        if len(fitting) != 1:
            raise UsageError(
                why=f"{forget!r} fits {len(fitting)} of the drives of {name}", hint=f"known: {', '.join(shelf.known()) or 'none'}"
            )
        shelf.forget(fitting[0])
        report.rows.append(Row(copy=name, facts={"action": "forgotten", "id": fitting[0]}))
        return report.close()
    more: dict[str, object] = {}
    if isinstance(replica, MountReplica):
        if versioning:
            raise UsageError(why=f"{name} is a drive and keeps no versions", hint="leave --versioning away")
        marker, where = _mark_drive(replica)
    else:
        from steelyard.copies.s3 import S3Replica

        assert isinstance(replica, S3Replica)
        marker, where = _mark_bucket(replica)
        more = _settings_of(replica, versioning)
    others = [ident for ident in shelf.known() if ident != marker.ident]
    shelf.remember(marker.ident, label)
    facts: dict[str, object] = {
        "action": "marked",
        "id": marker.ident,
        "label": shelf.labels()[marker.ident] or None,
        "made_at": marker.made_at,
        "abilities": marker.abilities,
        "other_drives": others,
    }
    lacks = [key.replace("_", " ") for key, value in marker.abilities.items() if value is False]
    advice = more.pop("advice", "")
    facts["why"] = "; ".join(part for part in (f"lacks: {', '.join(lacks)}" if lacks else "lacks nothing", str(advice)) if part)
    facts |= more
    if others:
        log.info("%s has %d drives that take turns", name, len(others) + 1)
    report.rows.append(Row(copy=name, path=where, facts=facts))
    return report.close()


def _mark_drive(replica: MountReplica) -> tuple[Marker, str]:
    replica.ready(write=True, any_drive=True)
    with replica.held(any_drive=True) as root:
        try:
            old = read_marker(root)
        except BadRecord as error:
            log.warning("%s; a new marker takes its place", error.message)
            old = None
        abilities = asdict(probe(root))
        marker = (
            Marker(old.ident, old.name, old.made_at, abilities) if old else Marker(secrets.token_hex(8), replica.name, abilities=abilities)
        )
        write_atomically(root / OURS / MARKER, marker.dump())
    return marker, str(replica.root / OURS / MARKER)


def _settings_of(replica: S3Replica, turn_on: bool) -> dict[str, object]:
    """Whether the bucket keeps versions and can lock objects, and what to do about it where the config asks for more. Changes it with *turn_on* only.

    :raises Refused: when the config asks for locked objects and the bucket has none.
    """
    from steelyard.copies.s3_bucket import object_lock_of, turn_versioning_on, versioning_of

    if turn_on:
        turn_versioning_on(replica.bucket)
    versioning, lock = versioning_of(replica.bucket), object_lock_of(replica.bucket)
    if replica.settings.object_lock_days and lock == "off":
        hint = "object lock can only be had for a bucket that was made with it; make one, or leave object_lock_days out"
        raise Refused(why=f"{replica.bucket.who}: object_lock_days is set, but the bucket has no object lock", hint=hint)
    advice = ""
    if versioning == "off":
        advice = f"the bucket keeps no versions, so what is overwritten or deleted is gone: steelyard target {replica.name} --versioning turns it on"
    elif versioning == "on":
        advice = "the bucket keeps versions: a lifecycle rule should let old ones go after a time"
    return {"versioning": versioning, "object_lock": lock, "advice": advice}


def _mark_bucket(replica: S3Replica) -> tuple[Marker, str]:
    from steelyard.copies.s3_objects import get

    replica.ready(write=True)
    key = replica.layout.ours(MARKER)
    data = get(replica.bucket, key)
    old = Marker.parse(data, replica.layout.url(key)) if data is not None else None
    abilities = asdict(replica.abilities())
    marker = Marker(old.ident, old.name, old.made_at, abilities) if old else Marker(secrets.token_hex(8), replica.name, abilities=abilities)
    replica.bucket.call("put_object", Key=key, Body=marker.dump())
    return marker, replica.layout.url(key)
