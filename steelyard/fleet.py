"""status --fleet: which machine holds what, and when it was last proven there, by the inventories that the machines left in the replicas."""

from __future__ import annotations

import logging
from typing import Any

from steelyard.config import S3Config
from steelyard.errors import BadRecord, Refused
from steelyard.inventory import HeldModel, Inventory, host_name, own, publish, published
from steelyard.report import Report, Row
from steelyard.site import Site

log = logging.getLogger("steelyard")

MOST_CLOCK_ERROR_S = 300.0


def fleet(site: Site, *, publish_first: bool = False) -> Report:
    """One row for each model on each machine; `hosts` beside them for programs. This machine is looked at now, the others as they last said.

    A drive that is absent is passed over, a bucket that does not answer is an error (exit 4), a damaged inventory too (exit 1).
    """
    report = Report("status")
    report.extra["published"] = publish(site) if publish_first else {}
    here = own(site)
    latest: dict[str, tuple[Inventory, str]] = {}
    for name in site.replicas:
        with report.collecting():
            try:
                for found in published(site, name):
                    if isinstance(found, BadRecord):
                        report.errors.append(found)
                    elif found.host not in latest or latest[found.host][0].published_at < found.published_at:
                        latest[found.host] = (found, name)
            except Refused as error:
                if isinstance(site.config.replicas[name], S3Config):
                    raise
                log.warning("%s is passed over: %s", name, error)
    # What it said of itself yesterday is no news.
    latest[here.host] = (here, "here")
    for host in sorted(latest, key=lambda host: (host != here.host, host)):
        inventory, where = latest[host]
        facts = _host(site, inventory, where)
        report.extra.setdefault("hosts", []).append(facts)
        report.rows += [_row(inventory, model, facts) for model in inventory.models]
    report.head = {"host": host_name(site), "hosts": report.extra["hosts"]}
    return report.close()


def _host(site: Site, inventory: Inventory, where: str) -> dict[str, Any]:
    age_s = inventory.age_s
    ahead = age_s < -MOST_CLOCK_ERROR_S
    return {
        "host": inventory.host,
        "from": where,
        "published_at": inventory.published_at.isoformat(timespec="seconds"),
        "age_s": max(0, round(age_s)),
        # A clock that is ahead would make an old inventory look fresh.
        "stale": where != "here" and (ahead or age_s > site.config.fleet.stale_after),
        "why": f"its clock is {-age_s:.0f} s ahead of ours" if ahead else "",
        "store": inventory.store.model_dump(),
        "nearly_full": inventory.store.free_bytes < inventory.store.min_free_bytes,
        "models": len(inventory.models),
        "steelyard": inventory.steelyard,
    }


def _row(inventory: Inventory, model: HeldModel, host: dict[str, Any]) -> Row:
    store = model.copies.get("store")
    copies = {
        name: {"verdict": copy.verdict, "last_proven": copy.last_proven.isoformat() if copy.last_proven else None}
        for name, copy in model.copies.items()
    }
    facts = {
        "host": inventory.host,
        "verdict": store.verdict if store else "missing",
        "commit": model.commit,
        "last_proven": store.last_proven.isoformat() if store and store.last_proven else None,
        "stale": host["stale"],
        "age_s": host["age_s"],
        "published_at": host["published_at"],
        "size_bytes": model.size_bytes,
        "copies": copies,
        "verified_copies": model.verified_copies,
        "min_copies": model.min_copies,
    }
    return Row(model.model, "", "store", "", facts, 0)
