"""What one machine holds, told to the others: its status, in a file of a few kilobytes that the nightly round leaves in every replica."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from steelyard import __version__
from steelyard.boards import NAME, board_of
from steelyard.errors import BadRecord, SteelyardError
from steelyard.report import Report
from steelyard.site import Site
from steelyard.status import status

log = logging.getLogger("steelyard")

VERSION = 1


class _Part(BaseModel):
    """A later version may say more: what we don't know is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class HeldCopy(_Part):
    verdict: str
    last_proven: AwareDatetime | None = None
    why: str = ""


class HeldModel(_Part):
    model: str
    repo_id: str = ""
    commit: str | None = None
    size_bytes: int | None = None
    copies: dict[str, HeldCopy] = {}
    verified_copies: int = 0
    min_copies: int = 1


class HeldStore(_Part):
    models: str = ""
    free_bytes: int
    total_bytes: int
    used_bytes: int
    min_free_bytes: int = 0


class Inventory(_Part):
    """One machine at one time. Written by others: whoever shows it says how old it is, and trusts no byte because of it."""

    version: int = Field(ge=1)
    host: str = Field(pattern=rf"^{NAME.pattern}$")
    published_at: AwareDatetime
    steelyard: str = ""
    store: HeldStore
    models: list[HeldModel]

    @property
    def age_s(self) -> float:
        """Below 0 where that machine's clock is ahead of ours."""
        return (datetime.now(UTC) - self.published_at).total_seconds()


def host_name(site: Site) -> str:
    """This machine's name among the others."""
    return site.config.fleet.host or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:63] or "host"


def own(site: Site, report: Report | None = None) -> Inventory:
    """What this machine holds now, by records and stats; *report* where its status is known already."""
    report = report or status(site)
    told: dict[str, Any] = {"version": VERSION, "host": host_name(site), "published_at": datetime.now(UTC), "steelyard": __version__}
    return Inventory.model_validate({**told, "store": report.extra["store"], "models": report.extra["models"]})


def publish(site: Site) -> dict[str, str]:
    """Step: leave this machine's inventory in every replica that is there. Replica -> "published" or why not; never a reason to fail."""
    inventory = own(site)
    data = inventory.model_dump_json(indent=1).encode()
    done: dict[str, str] = {}
    for name, replica in site.replicas.items():
        try:
            replica.ready(write=True)
            board = board_of(replica)
            _warn_of_a_namesake(inventory, board.get(inventory.host), name)
            board.put(inventory.host, data)
            done[name] = "published"
        except SteelyardError as error:
            if error.exit_code == 130:
                raise
            done[name] = error.message
            log.info("the inventory is not left in %s: %s", name, error)
    return done


def _warn_of_a_namesake(ours: Inventory, there: bytes | None, replica: str) -> None:
    try:
        other = parse(there, ours.host, replica) if there else None
    except BadRecord:
        return
    if other is not None and other.store.models != ours.store.models:
        log.warning(
            "%s: two machines call themselves %s (stores %s and %s); give one another name: [fleet] host",
            replica,
            ours.host,
            other.store.models,
            ours.store.models,
        )


def published(site: Site, name: str) -> Iterator[Inventory | BadRecord]:
    """Every inventory in the replica *name*. :raises Refused, OtherSide: when it can't be read now."""
    replica = site.replica(name)
    replica.ready(write=False)
    board = board_of(replica)
    for host in board.hosts():
        try:
            data = board.get(host)
            if data is not None:
                yield parse(data, host, name)
        except BadRecord as error:
            yield error


def parse(data: bytes, host: str, where: str) -> Inventory:
    """:raises BadRecord: when it is no inventory of *host*."""
    try:
        found = Inventory.model_validate(json.loads(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadRecord(path=f"{host}'s inventory in {where}", why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord(path=f"{host}'s inventory in {where}", why="it is no JSON") from error
    if found.host != host:
        raise BadRecord(path=f"{host}'s inventory in {where}", why=f"it is {found.host}'s")
    return found
