"""The rot matrix: {source, replica, manifest, lock, journal, model_info.json, certificate} × eight kinds of damage × {times kept, changed}.

Everything is found, and nothing is carried on. Pieces are made small, so that a file of 1.3 MB has six.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard import pieces
from steelyard.backup import backup
from steelyard.checkpoint import read_certificate
from steelyard.checkpoint.certificate import Certificate, certificate_path
from steelyard.download import download
from steelyard.errors import SteelyardError
from steelyard.manifest import seal
from steelyard.repair import repair
from steelyard.report import Report
from steelyard.restore import restore
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.conftest import FILE, REPO, World

PIECE = 256 * 1024
CONTENT = random.Random(11).randbytes(5 * PIECE + 4321)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Damage = Callable[[bytes, int], bytes]
"""The bytes, and how large a piece of them is -> other bytes."""


def swapped(data: bytes, piece: int) -> bytes:
    return data[piece : 2 * piece] + data[:piece] + data[2 * piece :]


DAMAGES: dict[str, Damage] = {
    "1 bit": lambda data, piece: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "1 piece": lambda data, piece: data[:piece] + random.Random(2).randbytes(len(data[piece : 2 * piece])) + data[2 * piece :],
    "head": lambda data, piece: bytes(byte ^ 0x55 for byte in data[:16]) + data[16:],
    "tail": lambda data, piece: data[:-16] + bytes(byte ^ 0x55 for byte in data[-16:]),
    "cut": lambda data, piece: data[: len(data) - piece // 2 - 1],
    "grown": lambda data, piece: data + data[:piece],
    "hole": lambda data, piece: data[:piece] + bytes(len(data[piece : 2 * piece])) + data[2 * piece :],
    "swapped pieces": swapped,
}
every = pytest.mark.parametrize("damage", DAMAGES)
times = pytest.mark.parametrize("keep_times", [True, False], ids=["times kept", "times changed"])


def spoil(path: Path, damage: str, keep_times: bool, piece: int = PIECE) -> bytes:
    """Damage the file where it lies; what it holds now."""
    before, right = path.stat(), path.read_bytes()
    wrong = DAMAGES[damage](right, min(piece, len(right) // 3))
    assert wrong != right
    with path.open("r+b") as file:
        file.write(wrong)
        file.truncate(len(wrong))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 3_000_000_000))
    return wrong


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Path]]:
    """A store, a hub cache and a replica, whole; and where this state is kept."""
    home = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch, LoopbackHub() as hub:
        patch.setattr(pieces, "PIECE_BYTES", PIECE)
        hub.add_revision(REPO, {FILE: CONTENT})
        world = World(home / "w", hub)
        world.home.mkdir()
        world.configure()
        assert download(world.site()).ok
        assert backup(world.site()).ok
        shutil.copytree(world.home, home / "kept", symlinks=True)
        yield world, home / "kept"


@pytest.fixture
def world(kept: tuple[World, Path]) -> World:
    world, keep = kept
    shutil.rmtree(world.home)
    shutil.copytree(keep, world.home, symlinks=True)
    return world


def replica_of(world: World) -> Path:
    return next(world.usb.glob(f"mvdream/*/{FILE}"))


def verdicts(report: Report, file: str = FILE) -> set[str]:
    return {row.outcome for row in report.rows if row.file == file}


def all_finals_right(world: World, *but: Path) -> bool:
    """Every file that has the weights' name, anywhere, is right."""
    return all(
        path.read_bytes() == CONTENT
        for path in world.home.rglob(FILE)
        if path.is_file() and path not in but and "quarantine" not in str(path)
    )


@every
@times
def test_of_the_source(world: World, damage: str, keep_times: bool) -> None:
    replica = replica_of(world)
    spoil(world.weights, damage, keep_times)
    found = verify(world.site())
    assert (found.exit_code, verdicts(found)) == (1, {"corrupt"})
    shutil.rmtree(replica.parent)
    carried = backup(world.site())
    # Either the good bytes came from elsewhere (the hub cache) or it was refused; what is there is right.
    assert all_finals_right(world, world.weights)
    assert carried.exit_code == 1 or replica.read_bytes() == CONTENT
    assert repair(world.site()).ok
    assert world.weights.read_bytes() == CONTENT


@every
@times
def test_of_a_replica(world: World, damage: str, keep_times: bool) -> None:
    replica = replica_of(world)
    spoil(replica, damage, keep_times)
    found = verify(world.site(), copy="usb")
    assert (found.exit_code, verdicts(found)) == (1, {"corrupt"})
    into = world.home / "into"
    alone = restore(world.site(), "mvdream", source="usb", into=into)
    # A file that only grew has every piece still; nothing else can come back from this copy alone.
    assert (into / FILE).read_bytes() == CONTENT if damage == "grown" else not (into / FILE).exists()
    assert alone.ok == (damage == "grown")
    world.weights.unlink()
    assert restore(world.site(), "mvdream").ok
    assert world.weights.read_bytes() == CONTENT
    assert repair(world.site(), copy="usb").ok
    assert replica.read_bytes() == CONTENT


@every
@times
@pytest.mark.parametrize("whose", ["store", "usb"])
def test_of_a_manifest(world: World, damage: str, keep_times: bool, whose: str) -> None:
    manifests = {"store": world.models.glob(".steelyard/manifests/mvdream/*.json"), "usb": world.usb.glob("mvdream/*/manifest.json")}
    (path,) = manifests[whose]
    spoil(path, damage, keep_times, piece=200)
    found = verify(world.site(), copy=whose)
    assert (found.exit_code, "corrupt" in verdicts(found, "manifest.json")) == (1, True)
    backup(world.site())
    restore(world.site(), "mvdream", into=world.home / "into")
    assert all_finals_right(world)
    repair(world.site(), copy=whose)
    assert verify(world.site(), copy=whose).ok


@every
@times
def test_of_the_lock(world: World, damage: str, keep_times: bool) -> None:
    path = world.config.with_suffix(".lock")
    wrong = spoil(path, damage, keep_times, piece=60)
    for verb in (verify, backup, download, repair):
        try:
            report = verb(world.site())
        except SteelyardError as error:
            assert error.exit_code == 1
        else:
            assert report.exit_code == 1
    assert path.read_bytes() == wrong, "the lock is put right by a person, from git"
    assert all_finals_right(world)


@every
@times
def test_of_the_journal(world: World, damage: str, keep_times: bool) -> None:
    """What an interrupted download noted of its blocks: damage costs bytes, never the truth."""
    shutil.rmtree(world.models)
    shutil.rmtree(world.home / "hf")
    world.hub.faults.add("cdn", "cut after 700 KiB", times=1)
    world.hub.faults.add("cdn", "410", skip=1)
    assert not download(world.site()).ok
    world.hub.faults.clear()
    journals = list(world.models.glob(".steelyard/staging/*.journal"))
    assert journals
    for path in journals:
        spoil(path, damage, keep_times, piece=24)
    assert download(world.site()).ok
    assert world.weights.read_bytes() == CONTENT
    assert all_finals_right(world)


@every
@times
def test_of_model_info(world: World, damage: str, keep_times: bool) -> None:
    path = world.models / "model_info.json"
    right = path.read_bytes()
    spoil(path, damage, keep_times, piece=50)
    found = verify(world.site())
    assert (found.exit_code, verdicts(found, "model_info.json"), verdicts(found)) == (1, {"stale"}, {"ok"})
    backup(world.site())
    assert all_finals_right(world)
    assert download(world.site()).ok
    assert path.read_bytes() == right


@every
@times
def test_of_a_certificate(world: World, damage: str, keep_times: bool) -> None:
    """It is void: nobody is told that the file loads, until a load has shown it again. The file itself is not touched."""
    stat = world.weights.stat()
    facts = Certificate(
        FILE, SHA256, stat.st_size, stat.st_mtime_ns, stat.st_ino, "torch-zip", 10, 1000, "f" * 64, "state_dict", True, 0, "ok", "2.13", "cpu", 1.0, 1,
        "2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    path = certificate_path(world.weights)
    path.write_bytes(seal({name: getattr(facts, name) for name in Certificate.__slots__}))
    assert read_certificate(world.weights) == facts
    spoil(path, damage, keep_times, piece=50)
    assert read_certificate(world.weights) is None
    assert verify(world.site()).ok


def test_a_site_opened_before_the_damage_finds_it_too(world: World) -> None:
    site: Site = world.site()
    assert verify(site).ok
    spoil(world.weights, "1 bit", keep_times=True)
    assert verify(site).exit_code == 1
