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
from steelyard.errors import BadRecord, UsageError
from steelyard.names import OURS
from steelyard.report import Report, Row

if TYPE_CHECKING:
    from steelyard.copies.s3 import S3Replica
    from steelyard.site import Site

log = logging.getLogger("steelyard")


def shelf_of(site: Site, name: str) -> Shelf:
    return Shelf(site.store.ours / "targets" / f"{name}.json")


def target(site: Site, name: str, *, forget: str | None = None) -> Report:
    """Mark the drive (or bucket) that replica *name* has now, probe it, and remember its id; *forget*: no longer expect the drive of that id.

    A marker that is there is kept, so this may be run again. A second drive under one name joins the shelf.
    """
    report = Report("target")
    replica = site.replica(name)
    shelf = shelf_of(site, name)
    if forget is not None:
        fitting = [ident for ident in shelf.known() if ident.startswith(forget)]
        if len(fitting) != 1:
            raise UsageError(
                why=f"{forget!r} fits {len(fitting)} of the drives of {name}", hint=f"known: {', '.join(shelf.known()) or 'none'}"
            )
        shelf.forget(fitting[0])
        report.rows.append(Row(copy=name, facts={"action": "forgotten", "id": fitting[0]}))
        return report.close()
    if isinstance(replica, MountReplica):
        marker, where = _mark_drive(replica)
    else:
        from steelyard.copies.s3 import S3Replica

        assert isinstance(replica, S3Replica)
        marker, where = _mark_bucket(replica)
    others = [ident for ident in shelf.known() if ident != marker.ident]
    shelf.remember(marker.ident)
    facts = {"action": "marked", "id": marker.ident, "made_at": marker.made_at, "abilities": marker.abilities, "other_drives": others}
    lacks = [key.replace("_", " ") for key, value in marker.abilities.items() if value is False]
    facts["why"] = f"lacks: {', '.join(lacks)}" if lacks else "lacks nothing"
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
