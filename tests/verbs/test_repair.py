"""Only what is broken is replaced, from whoever has it, and a kill leaves the truth."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from steelyard.copies.base import Look, ProvenReader
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import Arrival
from steelyard.repair import repair
from steelyard.restore import Folder
from steelyard.source import LocalFile
from steelyard.verify import verify
from tests.conftest import FILE, World

PIECE = 8 << 20


@pytest.fixture
def held(world: World) -> World:
    assert world.run("download").code == 0
    assert world.run("backup").code == 0
    return world


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blob(world: World) -> Path:
    return next(path for path in world.home.glob("hf/hub/models--*/blobs/*") if path.stat().st_size > PIECE)


def on_usb(world: World) -> Path:
    return next(world.usb.glob(f"mvdream/*/{FILE}"))


def test_one_flipped_byte_costs_one_piece_and_keeps_the_evidence(held: World) -> None:
    right = sha256(held.weights)
    held.flip(held.weights, PIECE + 5)
    done = held.run("repair")
    row = done.of(FILE)
    assert (done.code, row["action"], row["bytes_moved"], row["sources"]) == (0, "repaired", PIECE, ["hub-cache"])
    assert sha256(held.weights) == right
    (case,) = (held.models / ".steelyard" / "quarantine").iterdir()
    assert (case / f"{PIECE}-{2 * PIECE}.bin").stat().st_size == PIECE
    assert "corrupt" in (case / "record.json").read_text()
    assert held.run("repair").of(FILE)["action"] == "nothing-to-do"


def test_a_dry_run_prices_it_and_touches_nothing(held: World) -> None:
    held.flip(held.weights, 5)
    before = sha256(held.weights)
    row = held.run("repair", "--dry-run").of(FILE)
    assert (row["action"], row["bytes_moved"], row["sources"]) == ("would-repair", PIECE, ["hub-cache"])
    assert sha256(held.weights) == before


def test_several_damaged_copies_with_no_whole_one_among_them_mend_each_other(held: World) -> None:
    right = sha256(held.weights)
    held.flip(held.weights, 0)
    held.flip(blob(held), PIECE)
    held.flip(on_usb(held), 2 * PIECE)
    held.hub.down()
    done = held.run("repair", "--copy", "all")
    assert done.code == 0, done.stdout
    assert {sha256(held.weights), sha256(blob(held)), sha256(on_usb(held))} == {right}
    assert all(row["bytes_moved"] <= PIECE for row in done.rows)


def test_when_every_copy_here_is_bad_in_the_same_piece_the_hub_gives_just_that_piece(held: World) -> None:
    right = sha256(held.weights)
    for path in (held.weights, blob(held), on_usb(held)):
        held.flip(path, 3)
    held.hub.reset_counters()
    row = held.run("repair").of(FILE)
    assert (row["action"], row["sources"]) == ("repaired", ["hub"])
    assert held.hub.bytes_sent("cdn") == PIECE
    assert sha256(held.weights) == right


def test_a_piece_that_is_good_nowhere_is_beyond_repair_and_nothing_is_touched(held: World) -> None:
    for path in (held.weights, blob(held), on_usb(held)):
        held.flip(path, 3)
    held.hub.delete_repo("MVDream/MVDream")
    before = sha256(held.weights)
    done = held.run("repair")
    row = done.of(FILE)
    assert (done.code, row["action"], row["lost_ranges"]) == (1, "beyond-repair", [[0, PIECE]])
    assert sha256(held.weights) == before


@pytest.fixture
def several(world: World) -> World:
    world.hub.add_revision("MVDream/MVDream", {"a.bin": b"a" * 5000, "z.bin": b"z" * 5000})
    world.configure(files=f'["*.bin", "{FILE}"]')
    assert world.run("download").code == 0
    assert world.run("backup").code == 0
    return world


def test_what_stands_in_the_way_of_one_file_does_not_stop_the_next(several: World) -> None:
    """A folder under its name is told and left alone; it was nobody's to take away."""
    (several.models / "a.bin").unlink()
    (several.models / "a.bin").mkdir()
    several.flip(several.weights, 5)
    done = several.run("repair")
    assert (done.code, done.errors[0]["code"]) == (1, "wrong-type")
    assert {row["file"]: row["action"] for row in done.rows} == {"a.bin": "beyond-repair", FILE: "repaired", "z.bin": "nothing-to-do"}
    assert (several.models / "a.bin").is_dir()


def test_a_hub_that_is_away_stops_no_file_that_can_be_mended_without_it(several: World) -> None:
    """What only the Hub has stays bad and is told so: corrupt (1) is the smaller of the two exit codes that apply."""
    right = sha256(several.weights)
    for path in (several.models / "a.bin", next(several.usb.glob("mvdream/*/a.bin")), several.models / "z.bin", several.weights):
        several.flip(path, 5)
    (cached,) = (path for path in several.home.glob("hf/hub/models--*/blobs/*") if path.read_bytes() == b"a" * 5000)
    several.flip(cached, 5)
    several.hub.down()
    done = several.run("repair")
    assert (done.code, [error["code"] for error in done.errors]) == (1, ["unreachable"])
    assert {row["file"]: row["action"] for row in done.rows} == {"a.bin": "beyond-repair", FILE: "repaired", "z.bin": "repaired"}
    assert done.of("a.bin")["lost_ranges"] == [[0, 5000]]
    assert sha256(several.weights) == right
    several.hub.up()
    assert several.run("repair").of("a.bin")["sources"] == ["hub"]


def test_what_is_lost_for_good_is_named_by_tensor(held: World) -> None:
    for path in (held.weights, blob(held), on_usb(held)):
        held.flip(path, PIECE + (4 << 20))
    held.hub.delete_repo("MVDream/MVDream")
    row = held.run("repair").of(FILE)
    assert row["lost_ranges"] == [[PIECE, 2 * PIECE]]
    assert "model.diffusion_model.l5.weight" in row["lost_tensors"]
    assert len(row["lost_tensors"]) < 7


def test_without_any_record_of_pieces_the_archives_own_crcs_keep_what_is_sound(held: World) -> None:
    right = sha256(held.weights)
    shutil.rmtree(held.models / ".steelyard")
    shutil.rmtree(held.usb)
    shutil.rmtree(held.home / "hf")
    held.flip(held.weights, PIECE + (4 << 20))
    found = held.run("verify").of(FILE)
    assert (found["verdict"], len(found["bad_ranges"])) == ("corrupt", 1)
    assert found["bad_ranges"][0][0] <= PIECE + (4 << 20) < found["bad_ranges"][0][1]
    assert found["bad_ranges"] != [[0, held.weights.stat().st_size]]
    held.hub.reset_counters()
    done = held.run("repair")
    assert done.code == 0, done.stdout
    assert sha256(held.weights) == right
    assert held.hub.bytes_sent("cdn") < PIECE
    assert held.run("verify").code == 0


def test_a_replica_is_repaired_the_same_way(held: World) -> None:
    held.flip(on_usb(held), PIECE)
    assert held.run("verify", "--copy", "usb").of(FILE)["bad_ranges"] == [[PIECE, 2 * PIECE]]
    row = held.run("repair", "--copy", "usb").of(FILE)
    assert (row["action"], row["sources"], row["bytes_moved"]) == ("repaired", ["store"], PIECE)
    assert held.run("verify", "--copy", "usb").code == 0


def test_a_lost_file_comes_back_whole(held: World) -> None:
    right = sha256(held.weights)
    held.weights.unlink()
    assert held.run("repair").of(FILE)["action"] == "repaired"
    assert sha256(held.weights) == right


def test_a_damaged_replica_manifest_is_written_anew(held: World) -> None:
    manifest = next(held.usb.glob("mvdream/*/manifest.json"))
    held.flip(manifest, 100)
    assert held.run("verify", "--copy", "usb").of("manifest.json")["verdict"] == "corrupt"
    assert held.run("repair", "--copy", "usb").code == 0
    assert held.run("verify", "--copy", "usb").code == 0


def test_the_store_without_its_records_is_rebuilt_from_a_replica(held: World) -> None:
    right = sha256(held.weights)
    shutil.rmtree(held.models / ".steelyard")
    held.flip(held.weights, PIECE + 1)
    held.hub.down()
    done = held.run("repair")
    assert done.code == 0, done.stdout
    assert done.of(FILE)["bytes_moved"] == PIECE
    assert sha256(held.weights) == right
    assert held.run("verify").code == 0


def test_bytes_behind_a_second_name_are_not_changed_in_place(held: World) -> None:
    other = held.home / "the-users-own-link.pt"
    os.link(held.weights, other)
    held.flip(held.weights, 5)
    spoilt = sha256(other)
    row = held.run("repair").of(FILE)
    assert (row["action"], row["bytes_moved"], row["sources"]) == ("repaired", PIECE, ["hub-cache"]), "the good pieces are its own"
    assert held.run("verify").code == 0
    assert sha256(other) == spoilt


def test_a_sector_that_stays_unreadable_is_left_to_the_old_file_and_costs_one_piece(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be written over where it lies is made anew beside it; quarantine then holds the bad sector, so that nothing else gets it."""
    right, inode, read = sha256(held.weights), held.weights.stat().st_ino, os.preadv

    def failing(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if os.fstat(fd).st_ino == inode and offset < PIECE + 8192 and offset + sum(map(len, buffers)) > PIECE + 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", failing)
    assert verify(held.site()).rows[0].facts["bad_ranges"] == [[PIECE, 2 * PIECE]]
    report = repair(held.site())
    facts = report.rows[0].facts
    assert (report.exit_code, facts["action"], facts["bytes_moved"], facts["sources"]) == (0, "repaired", PIECE, ["hub-cache"])
    assert sha256(held.weights) == right
    assert inode in {path.stat().st_ino for path in (held.models / ".steelyard" / "quarantine").glob(f"*/{FILE}")}
    assert verify(held.site()).ok


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_random_damages_are_found_in_their_range_and_mended(seed: int, tmp_path: Path) -> None:
    """Five seeds: 1,000 flips, cuts, growths and holes over odd sizes, with small pieces so that many fit."""
    rng = random.Random(seed)
    step = 16 * 1024
    good = Folder(tmp_path / "good")
    bad = Folder(tmp_path / "bad")
    for folder in (good, bad):
        folder.ready(write=True)
    for number in range(200):
        size = rng.choice([0, 1, step - 1, step, step + 1, 7 * step + rng.randrange(step), 20 * step])
        data = rng.randbytes(size)
        arrival = Arrival(size, piece_bytes=step)
        arrival.feed(data)
        entry = FileEntry.of(f"f{number}", arrival.finish())
        manifest = Manifest("m", "A/b", "main", "a" * 40, (entry,))
        (good.root / entry.path).write_bytes(data)
        path = bad.root / entry.path
        spoilt, touched = damage(rng, data)
        path.write_bytes(spoilt)
        finding = bad.judge(manifest, entry, Look())
        assert finding.verdict == "corrupt", (seed, number, size)
        assert all(any(lo <= at < hi for lo, hi in finding.bad_ranges) for at in touched), (seed, number)
        with LocalFile(good.root / entry.path) as source:
            reader = ProvenReader(entry, {"good": source})
            moved = bad.mend(manifest, entry, finding, reader)
        pieces = {at // step for at in touched if at < size}
        assert moved == sum(min(step, size - piece * step) for piece in pieces)
        assert path.read_bytes() == data
        assert bad.judge(manifest, entry, Look()).ok


def damage(rng: random.Random, data: bytes) -> tuple[bytes, list[int]]:
    """Spoilt bytes, and offsets that must lie in a bad range: every piece that differs has at least one of them."""
    kinds = ["grow"] if not data else ["flip", "cut", "grow", "hole"]
    kind = rng.choice(kinds)
    if kind == "flip":
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :], [at]
    if kind == "cut":
        at = rng.randrange(len(data))
        return data[:at], list(range(at, len(data)))
    if kind == "grow":
        more = rng.randrange(1, 5000)
        return data + rng.randbytes(more), [len(data), len(data) + more - 1]
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 40_000))
    if not any(data[start:end]):
        end, start = start + 1, start
        return data[:start] + bytes([data[start] ^ 1]) + data[end:], [start]
    return data[:start] + bytes(end - start) + data[end:], [at for at in range(start, end) if data[at]]


@pytest.mark.parametrize("seed", range(4))
def test_a_repair_killed_anywhere_leaves_the_truth_and_can_finish(held: World, seed: int) -> None:
    """Five kills each at random times of a repair of three pieces: 20 points; verify then says what is so, and a repair finishes."""
    rng = random.Random(seed)
    right = sha256(held.weights)
    for _ in range(5):
        for at in (1, PIECE, 2 * PIECE):
            held.flip(held.weights, at, bits=rng.randrange(1, 256))
        process = held.start("repair", "--json", start_new_session=True)
        time.sleep(rng.uniform(0.25, 0.7))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        whole = sha256(held.weights) == right
        done = held.run("verify")
        assert (done.of(FILE)["verdict"] == "ok") == whole
        assert held.run("repair").code == 0
        assert sha256(held.weights) == right
