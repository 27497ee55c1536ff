"""Is there room for the plan: priced first, on every file system it touches, before the first byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from steelyard.disk import device_of, free_bytes, gb, total_bytes
from steelyard.errors import NoSpace


@dataclass(frozen=True)
class Need:
    """*size_bytes* that will be written below *place*, and *reserve_bytes* that must stay free there."""

    place: Path
    size_bytes: int
    reserve_bytes: int = 0


def check_room(needs: Iterable[Need]) -> None:
    """Add up what is needed on each file system; the largest reserve asked for there counts once.

    :raises NoSpace: with the amounts, before anything is written.
    """
    by_device: dict[int, list[Need]] = {}
    for need in needs:
        if need.size_bytes:
            by_device.setdefault(device_of(need.place), []).append(need)
    for together in by_device.values():
        place = together[0].place
        size = sum(need.size_bytes for need in together)
        reserve = max(need.reserve_bytes for need in together)
        if total_bytes(place) == 0:
            continue  # some drivers in user space tell no sizes at all: a full disk then shows when it is full
        free = free_bytes(place)
        if free < size + reserve:
            short = size + reserve - free
            need_text = f"{gb(size)}{f' and a reserve of {gb(reserve)}' if reserve else ''}"
            raise NoSpace(place=str(place), free=gb(free), need=need_text, short=gb(short), short_bytes=short)
