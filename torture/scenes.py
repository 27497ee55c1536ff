"""The states a run begins in, the command that is then disturbed, and what an undisturbed run of it must reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.rules import Broken, Oracle
from torture.shim import rot
from torture.world import MODEL, PIECE_BYTES, World

Command = list[str]


@dataclass(frozen=True)
class Scene:
    """*start* names the kept state; *spoil* damages it by hand; *goal* raises Broken when the command has not reached what it is for."""

    name: str
    start: str
    command: Command
    goal: Callable[[World], None]
    spoil: Callable[[World, Oracle], None] = lambda world, oracle: None
    code: int = 0
    """What an undisturbed run must exit with."""


def whole(world: World, *places: str, commit: int) -> None:
    """:raises Broken: unless every file of that revision is right in each place."""
    if len(world.commits) <= commit:
        raise Broken(f"there is no revision {commit}")
    wanted = world.commits[commit]
    for place in places:
        roots = {
            "store": world.models / MODEL,
            "hub-cache": world.cache / "snapshots" / wanted,
            "into": world.into,
            **{name: root / MODEL / wanted for name, root in world.replicas.items()},
        }
        for file, right in world.revisions[commit].items():
            path = roots[place] / file
            if not path.is_file() or path.read_bytes() != right:
                raise Broken(f"the goal is not reached: {place} lacks {file} of revision {commit + 1}")
        if place in world.replicas:
            for record in ("manifest.json", "SHA256SUMS", "RESTORE.txt"):
                if not (roots[place] / record).is_file():
                    raise Broken(f"the goal is not reached: {place} lacks {record}")


def locked(world: World, commit: int) -> None:
    if world.locked_commit() != world.commits[commit]:
        raise Broken(f"the lock holds {world.locked_commit()[:8]}, not revision {commit + 1}")


def _goal(*places: str, commit: int, lock: int | None = None) -> Callable[[World], None]:
    def reached(world: World) -> None:
        whole(world, *[place for place in places if place in {"store", "hub-cache", "into"} or place in world.replicas], commit=commit)
        if lock is not None:
            locked(world, lock)

    return reached


def _whole_as_locked(world: World) -> None:
    whole(world, "store", "hub-cache", commit=world.commits.index(world.locked_commit()))


def _flip(*places: str) -> Callable[[World, Oracle], None]:
    """One bit of the second piece of big.dat in each place; times kept."""

    def spoil(world: World, oracle: Oracle) -> None:
        for place in places:
            for path in big_file(world, place):
                rot(path, PIECE_BYTES + 100)
                oracle.spoiled(path, {1})

    return spoil


def big_file(world: World, place: str) -> list[Path]:
    commit = world.commits[0]
    paths = {"store": world.models / MODEL / "big.dat", "hub-cache": (world.cache / "snapshots" / commit / "big.dat").resolve()}
    paths |= {name: root / MODEL / commit / "big.dat" for name, root in world.replicas.items()}
    return [paths[place]] if place in paths and paths[place].is_file() else []


def _empty_store(world: World, oracle: Oracle) -> None:
    shutil.rmtree(world.models / MODEL, ignore_errors=True)
    oracle.whole = {path: digest for path, digest in oracle.whole.items() if not path.is_relative_to(world.models / MODEL)}


def _some_lost(world: World, oracle: Oracle) -> None:
    """In the store one file is gone, one is cut short, one has a rotten piece."""
    store = world.models / MODEL
    for file in ("more.dat", "sub/small one.json"):
        (store / file).unlink()
        oracle.whole.pop(store / file, None)
    rot(store / "big.dat", PIECE_BYTES * 2 + 7)
    oracle.spoiled(store / "big.dat", {2})


def _lying_about(world: World, oracle: Oracle) -> None:
    """The weights lie in a folder that Steelyard knows nothing of."""
    for file, data in world.revisions[1].items():
        path = world.home / "lying" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _litter(world: World, oracle: Oracle) -> None:
    """What killed runs of long ago leave behind."""
    import os
    import time

    for folder in (world.models / ".steelyard/staging", world.hf / ".steelyard/staging", world.usb / ".steelyard/staging"):
        folder.mkdir(parents=True, exist_ok=True)
        orphan = folder / "orphan-0123456789abcdef0123.partial"
        orphan.write_bytes(b"x" * 5000)
        os.utime(orphan, (time.time() - 90 * 86400,) * 2)


ALL = ("store", "hub-cache", "usb", "drive")

SCENES = [
    Scene("download", "empty", ["download"], _goal("store", "hub-cache", commit=1, lock=1)),
    Scene("download, from the cache", "held", ["download"], _goal("store", "hub-cache", commit=0, lock=0), _empty_store),
    Scene("backup to a folder", "held", ["backup", "--to", "usb"], _goal("usb", "store", commit=0)),
    Scene("backup to a drive", "held", ["backup", "--to", "drive"], _goal("drive", "store", commit=0)),
    Scene("backup of a second snapshot", "updated", ["backup"], _goal("usb", "drive", commit=1)),
    Scene("backup of a rotten source", "held", ["backup"], lambda world: None, _flip("store"), code=1),
    Scene("restore", "full", ["restore", MODEL], _goal("store", commit=0, lock=0), _empty_store),
    Scene("restore what is lost", "full", ["restore", MODEL, "--force"], _goal("store", commit=0, lock=0), _some_lost),
    Scene("restore elsewhere", "full", ["restore", MODEL, "--from", "usb", "--into", "into"], _goal("into", commit=0)),
    Scene("repair of the store", "full", ["repair"], _goal("store", commit=0), _some_lost),
    Scene("repair of all copies", "full", ["repair", "--copy", "all"], _goal(*ALL, commit=0), _flip("usb", "hub-cache", "drive")),
    Scene("update", "full", ["update", MODEL], _goal("store", "hub-cache", commit=1, lock=1)),
    # A rollback of a rollback goes forward: one that was killed after its switch may end on either.
    Scene("rollback", "updated", ["rollback", MODEL], _whole_as_locked),
    Scene("adopt", "empty", ["adopt", "lying", MODEL, "--apply"], _goal("store", commit=1, lock=1), _lying_about),
    Scene("clean", "full", ["clean", "--apply"], _goal(*ALL, commit=0, lock=0), _litter),
    Scene("verify", "full", ["verify", "--copy", "all"], _goal(*ALL, commit=0)),
    Scene("scrub", "full", ["scrub"], _goal(*ALL, commit=0)),
    Scene("check-updates", "full", ["check-updates"], _goal(*ALL, commit=0, lock=0)),
    Scene("target", "held", ["target", "usb"], _goal("store", commit=0)),
]
"""With two drives. The scenes of a bucket are in the walk: a store's faults are the proxy's."""

STARTS: dict[str, list[Command]] = {
    "held": [["download"]],
    "full": [["download"], ["backup"]],
    "updated": [["download"], ["backup"], ["!second"], ["update", MODEL]],
}
"""How each state comes to be, from nothing; "!second" publishes the second revision upstream."""
