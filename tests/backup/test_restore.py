"""A replica is believed only as far as the lock and the digests go; what is brought back is proven before it gets its name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steelyard.backup import backup
from steelyard.copies.base import ProvenReader
from steelyard.errors import SteelyardError
from steelyard.manifest import seal
from steelyard.pieces import Arrival
from steelyard.report import Report
from steelyard.restore import restore
from tests.backup.conftest import FILE
from tests.conftest import World

PIECE = 8 << 20


@pytest.fixture
def bereft(held: World) -> World:
    """Backed up; then the store, its records and the hub cache are gone, the lock is left."""
    assert backup(held.site()).exit_code == 0
    shutil.rmtree(held.models)
    shutil.rmtree(held.home / "hf")
    return held


def snapshot(world: World) -> Path:
    return next((world.usb / "mvdream").iterdir())


def tamper(world: World, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the replica's manifest and give it a right digest of its own, as an attacker would."""
    path = snapshot(world) / "manifest.json"
    record = json.loads(path.read_bytes())
    change(record)
    record.pop("digest")
    path.write_bytes(seal(record))


def outcome(world: World, **options: Any) -> tuple[int, str]:
    try:
        report: Report = restore(world.site(), "mvdream", source="usb", **options)
    except SteelyardError as error:
        return error.exit_code, error.code
    return report.exit_code, report.errors[0].code if report.errors else ""


def test_a_store_that_is_lost_comes_back_from_the_replica_alone(bereft: World, checkpoint: Path) -> None:
    bereft.hub.down()
    done = bereft.run("restore", "mvdream", "--from", "usb")
    row = done.of(FILE)
    assert (done.code, row["action"], row["sources"]) == (0, "copied", ["usb"])
    assert bereft.weights.read_bytes() == checkpoint.read_bytes()
    assert bereft.run("verify").code == 0
    assert json.loads((bereft.models / "model_info.json").read_text())[FILE]["sha256"] == row["sha256"]


def test_a_lost_lock_is_made_anew_from_what_was_proven(bereft: World, checkpoint: Path) -> None:
    bereft.config.with_suffix(".lock").unlink()
    assert bereft.run("restore", "mvdream", "--from", "usb").code == 0
    assert bereft.weights.read_bytes() == checkpoint.read_bytes()
    assert bereft.run("verify").code == 0


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_plain_files_and_the_lock_are_enough_where_every_manifest_is_gone(bereft: World, checkpoint: Path, how: str) -> None:
    """Much more important than backup is restore: the files on the drive are whole, and the lock says what they must be."""
    manifest = snapshot(bereft) / "manifest.json"
    if how == "damaged":
        bereft.flip(manifest, 100)
    else:
        manifest.unlink()
    bereft.hub.down()
    done = bereft.run("restore", "mvdream", "--from", "usb")
    assert (done.code, done.of(FILE)["sources"]) == (0, ["usb"])
    assert bereft.weights.read_bytes() == checkpoint.read_bytes()
    assert bereft.run("verify").code == 0 == bereft.run("repair", "--copy", "usb").code
    assert bereft.run("verify", "--copy", "usb").code == 0
    bereft.flip(snapshot(bereft) / FILE, 5)
    bereft.flip(manifest, 100)
    shutil.rmtree(bereft.models)
    assert (bereft.run("restore", "mvdream", "--from", "usb").code, bereft.weights.exists()) == (1, False)


@pytest.mark.parametrize("name", ["../../outside.pt", "/etc/outside.pt", ".steelyard/target.json", "a/../../b", "con.pt", "x\\y"])
def test_a_manifest_that_names_a_file_outside_is_refused(bereft: World, name: str) -> None:
    tamper(bereft, lambda record: record["files"].append({**record["files"][0], "path": name}))
    code, _ = outcome(bereft)
    assert code in {1, 3}
    assert not bereft.weights.exists()
    assert not list(bereft.home.glob("**/outside.pt"))


def test_a_manifest_that_contradicts_the_lock_is_not_used(bereft: World) -> None:
    (snapshot(bereft) / FILE).write_bytes(b"evil" * 100)
    arrival = Arrival(400)
    arrival.feed(b"evil" * 100)
    made = arrival.finish()

    def forge(record: dict[str, Any]) -> None:
        record["files"][0] |= {
            "size_bytes": 400,
            "sha256": made.sha256,
            "etag": made.sha256,
            "pieces": list(made.pieces),
            "crc64nvme": made.crc64nvme,
        }

    tamper(bereft, forge)
    assert outcome(bereft) == (1, "bad-record")
    assert not bereft.weights.exists()


def test_forged_pieces_under_the_right_sha256_are_found_at_the_end(bereft: World) -> None:
    path = snapshot(bereft) / FILE
    bereft.flip(path, 5)
    data = path.read_bytes()
    arrival = Arrival(len(data))
    arrival.feed(data)
    pieces = list(arrival.finish().pieces)
    tamper(bereft, lambda record: record["files"][0].update(pieces=pieces))
    assert outcome(bereft) == (1, "corrupt")
    assert not bereft.weights.exists()
    assert not list(bereft.models.glob("**/*.partial")), "what proved wrong is not gone on with"


def test_a_forged_small_file_is_found_by_the_git_sha1_that_was_agreed_on(world: World) -> None:
    from steelyard.download import download

    world.configure(files='["README.md"]')
    assert download(world.site()).exit_code == 0
    assert backup(world.site()).exit_code == 0
    shutil.rmtree(world.models)
    shutil.rmtree(world.home / "hf")
    path = snapshot(world) / "README.md"
    data = path.read_bytes().replace(b"MVDream", b"Malware")
    path.write_bytes(data)
    arrival = Arrival(len(data))
    arrival.feed(data)
    made = arrival.finish()
    tamper(world, lambda record: record["files"][0].update(pieces=list(made.pieces), sha256=made.sha256, crc64nvme=made.crc64nvme))
    assert outcome(world) == (1, "corrupt")
    assert not (world.models / "README.md").exists()


def test_files_that_the_lock_does_not_name_are_not_brought_into_the_store(bereft: World) -> None:
    (snapshot(bereft) / "extra.py").write_bytes(b"import os")
    digest = hashlib.sha256(b"import os").hexdigest()
    tamper(bereft, lambda record: record["files"].append({**record["files"][0], "path": "extra.py", "size_bytes": 9, "sha256": digest,
                                                          "etag": digest, "pieces": ["0" * 64]}))  # fmt: skip
    assert outcome(bereft) == (0, "")
    assert not (bereft.models / "extra.py").exists()


def test_a_piece_size_that_would_fill_the_memory_is_refused(bereft: World) -> None:
    tamper(bereft, lambda record: record["files"][0].update(piece_bytes=1 << 40, pieces=["0" * 64]))
    assert outcome(bereft) == (1, "bad-record")


def test_what_is_not_proven_worse_is_not_overwritten_unless_forced(held: World, tmp_path: Path, checkpoint: Path) -> None:
    assert backup(held.site()).exit_code == 0
    into = tmp_path / "elsewhere"
    into.mkdir()
    (into / FILE).write_bytes(b"somebody's own file")
    done = held.run("restore", "mvdream", "--from", "usb", "--into", str(into))
    assert (done.code, done.rows[0]["action"], "--force" in done.errors[0]["hint"]) == (3, "refused", True)
    assert (into / FILE).read_bytes() == b"somebody's own file"
    assert held.run("restore", "mvdream", "--from", "usb", "--into", str(into), "--force").code == 0
    assert (into / FILE).read_bytes() == checkpoint.read_bytes()
    kept = list(into.glob(f".steelyard/quarantine/*/{FILE}"))
    assert [path.read_bytes() for path in kept] == [b"somebody's own file"]
    again = held.run("restore", "mvdream", "--from", "usb", "--into", str(into))
    assert [row["action"] for row in again.rows] == ["unchanged"]


def test_a_folder_inside_a_replica_is_no_place_to_restore_into(held: World) -> None:
    assert backup(held.site()).exit_code == 0
    done = held.run("restore", "mvdream", "--into", str(held.usb / "here"))
    assert (done.code, (held.usb / "here").exists()) == (2, False)


def test_bad_pieces_come_from_the_next_copy(held: World, tmp_path: Path, checkpoint: Path) -> None:
    """Three damaged copies, no two in the same place: together they have it all."""
    second = tmp_path / "second"
    held.configure(f'[replicas.nas]\nkind = "mount"\npath = "{second}"\nmount_point = false\n')
    assert backup(held.site()).exit_code == 0
    held.hub.down()
    blob = next(path for path in held.home.glob("hf/hub/models--*/blobs/*") if path.stat().st_size > PIECE)
    for place, offset in ((snapshot(held) / FILE, 5), (next(second.glob(f"mvdream/*/{FILE}")), PIECE + 5), (blob, 2 * PIECE + 5)):
        held.flip(place, offset)
    held.weights.unlink()
    report = restore(held.site(), "mvdream")
    assert (report.exit_code, len(report.rows[0].facts["sources"]) >= 2) == (0, True)
    assert held.weights.read_bytes() == checkpoint.read_bytes()


def test_a_piece_that_is_good_nowhere_is_named_with_its_range(bereft: World) -> None:
    bereft.flip(snapshot(bereft) / FILE, PIECE + 5)
    done = bereft.run("restore", "mvdream", "--from", "usb")
    assert (done.code, done.errors[0]["code"]) == (1, "corrupt")
    assert f"bytes {PIECE:,} to {2 * PIECE:,}" in done.errors[0]["message"]
    assert not bereft.weights.exists()


def test_a_file_that_is_good_nowhere_does_not_keep_the_others_away(world: World, tmp_path: Path) -> None:
    world.hub.add_revision("MVDream/MVDream", {"a.bin": b"a" * 5000, "z.bin": b"z" * 5000})
    world.configure(files=f'["*.bin", "{FILE}"]')
    assert world.run("download").code == 0 == world.run("backup").code
    world.flip(snapshot(world) / "a.bin", 5)
    for into in ([], ["--into", str(tmp_path / "into")]):
        shutil.rmtree(world.models)
        done = world.run("restore", "mvdream", "--from", "usb", *into)
        assert (done.code, [error["code"] for error in done.errors]) == (1, ["corrupt"])
        assert {row["file"]: row["action"] for row in done.rows} == {"a.bin": "refused", FILE: "copied", "z.bin": "copied"}
    assert sorted(path.name for path in (tmp_path / "into").iterdir() if path.is_file()) == [FILE, "z.bin"]
    world.flip(next(path for path in world.home.glob("hf/hub/models--*/blobs/*") if path.read_bytes() == b"a" * 5000), 5)
    world.hub.down()
    done = world.run("restore", "mvdream")
    assert (done.code, [error["code"] for error in done.errors]) == (4, ["unreachable"])
    assert {row["file"]: row["action"] for row in done.rows} == {"a.bin": "refused", FILE: "copied", "z.bin": "copied"}


def test_copies_on_separate_disks_are_read_at_once(held: World, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources, two threads: each begins with another source, and one that fails is asked last from then on."""
    import threading

    from steelyard.source import LocalFile

    site = held.site()
    entry = site.manifest("mvdream", site.lock().models["mvdream"].commit)[FILE]
    reader = ProvenReader(entry, {"a": LocalFile(held.weights), "b": LocalFile(held.weights)}, together=("a", "b"))

    def read(pieces: list[int]) -> None:
        for piece in pieces:
            reader.read_piece(piece, memoryview(bytearray(PIECE)))

    threads = [threading.Thread(target=read, args=(pieces,)) for pieces in ([0], [1])]
    barrier = threading.Barrier(2)
    order = ProvenReader._order

    def at_once(self: ProvenReader) -> list[str]:
        found = order(self)
        barrier.wait(5)
        return found

    monkeypatch.setattr(ProvenReader, "_order", at_once)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    reader.close()
    assert reader.used_bytes == {"a": PIECE, "b": PIECE}
