"""Every kind of damage has its verdict and its range."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket

import pytest

from tests.conftest import FILE, World

PIECE = 8 << 20


@pytest.fixture
def held(world: World) -> World:
    assert world.run("download").code == 0
    return world


@pytest.mark.parametrize("offset", [0, 1, PIECE - 1, PIECE, PIECE + 1, -1])
def test_one_flipped_byte_is_found_in_its_piece(held: World, offset: int) -> None:
    at = offset % held.weights.stat().st_size
    held.flip(held.weights, at)
    done = held.run("verify")
    row = done.of(FILE)
    assert (done.code, row["verdict"]) == (1, "corrupt")
    (start, end), *more = row["bad_ranges"]
    assert not more
    assert start <= at < end
    assert start % PIECE == 0
    assert end - start <= PIECE


def test_times_set_back_hide_nothing(held: World) -> None:
    before = held.weights.stat()
    held.flip(held.weights, 12345)
    os.utime(held.weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert held.run("verify").of(FILE)["verdict"] == "corrupt"
    assert held.run("verify", "--quick").of(FILE)["verdict"] != "ok"


def test_quick_reads_nothing_and_says_so_and_turns_nothing_green(held: World) -> None:
    done = held.run("verify", "--quick")
    assert done.code == 0
    assert "no byte was read" in done.json["note"]
    held.flip(held.weights, 5)
    assert held.run("verify", "--quick").of(FILE)["verdict"] == "unverified"
    assert held.run("verify").of(FILE)["verdict"] == "corrupt"
    quick = held.run("verify", "--quick")
    assert (quick.code, quick.of(FILE)["verdict"]) == (1, "corrupt")


def test_a_truncated_file_names_what_is_gone(held: World) -> None:
    size = held.weights.stat().st_size
    os.truncate(held.weights, PIECE + 100)
    row = held.run("verify").of(FILE)
    assert (row["verdict"], row["bad_ranges"]) == ("corrupt", [[PIECE, size]])


def test_a_grown_file_names_what_is_too_much(held: World) -> None:
    size = held.weights.stat().st_size
    with held.weights.open("ab") as file:
        file.write(b"more")
    row = held.run("verify").of(FILE)
    # The piece that they stand in is named, from its border on, as CONTRACT.md has it; it is not moved for that.
    assert (row["verdict"], row["bad_ranges"]) == ("corrupt", [[size // PIECE * PIECE, size + 4]])
    assert held.run("verify", "--quick").of(FILE)["bad_ranges"] == row["bad_ranges"]
    mended = held.run("repair").of(FILE)
    assert (mended["action"], mended["bytes_moved"], held.weights.stat().st_size) == ("repaired", 0, size)


def test_a_hole_of_zeros_is_found(held: World) -> None:
    with held.weights.open("r+b") as file:
        file.seek(PIECE + 4096)
        file.write(bytes(4096))
    assert held.run("verify").of(FILE)["bad_ranges"] == [[PIECE, 2 * PIECE]]


def test_a_file_that_is_gone_is_missing(held: World) -> None:
    held.weights.unlink()
    done = held.run("verify")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "missing")


def test_a_folder_or_a_link_to_the_outside_in_its_place_is_not_ok(held: World) -> None:
    elsewhere = held.home / "elsewhere.pt"
    shutil.move(held.weights, elsewhere)
    held.weights.symlink_to(elsewhere)
    row = held.run("verify").of(FILE)
    assert row["verdict"] == "corrupt"
    assert "leads to" in row["why"]
    held.weights.unlink()
    held.weights.mkdir()
    assert held.run("verify").of(FILE)["verdict"] == "corrupt"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_file_is_corrupt_and_not_a_fault_of_the_drive(held: World, kind: str) -> None:
    size = held.weights.stat().st_size
    held.weights.unlink()
    if kind == "fifo":
        os.mkfifo(held.weights)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(held.models):
            one.bind(FILE)
    else:
        held.weights.symlink_to("/dev/zero")
    row = held.run("verify").of(FILE)
    assert (row["verdict"], row["bad_ranges"]) == ("corrupt", [[0, size]])
    assert held.run("repair").of(FILE)["action"] == "repaired"
    assert held.run("verify").code == 0


def test_a_damaged_manifest_is_noticed_and_the_files_are_judged_by_the_lock(held: World) -> None:
    (manifest,) = held.models.glob(".steelyard/manifests/mvdream/*.json")
    whole = manifest.read_bytes()
    held.flip(manifest, len(whole) // 2)
    done = held.run("verify")
    assert done.code == 1
    assert done.of("manifest.json")["verdict"] == "corrupt"
    row = done.of(FILE)
    assert (row["verdict"], row["proof"]) == ("ok", "sha256 of the whole")
    assert held.run("verify").code == 0  # it was written anew from bytes that the lock proves
    assert set(manifest.read_bytes().split(b'"pieces"')[1].split()) == set(whole.split(b'"pieces"')[1].split())


def test_a_file_that_only_the_lock_records_is_no_stray(world: World) -> None:
    world.configure()
    world.config.write_text(world.config.read_text().replace('dir = "."', 'dir = "own"'))
    assert world.run("download").code == 0
    shutil.rmtree(world.models / ".steelyard" / "manifests")
    assert [row["verdict"] for row in world.run("verify").rows] == ["ok"]


def test_without_any_record_of_pieces_the_whole_is_judged_by_the_published_digest(held: World) -> None:
    shutil.rmtree(held.models / ".steelyard" / "manifests")
    held.flip(held.weights, 7)
    done = held.run("verify")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "corrupt")


def test_model_info_that_was_changed_is_noticed_and_never_believed(held: World) -> None:
    info = held.models / "model_info.json"
    info.write_text(info.read_text().replace('"size_bytes": ', '"size_bytes": 1'))
    done = held.run("verify")
    assert done.of("model_info.json")["verdict"] == "stale"
    assert done.of(FILE)["verdict"] == "ok"
    assert held.run("download").code == 0
    assert held.run("verify").code == 0


def test_all_copies_are_judged_and_an_empty_replica_is_missing(held: World) -> None:
    done = held.run("verify", "--copy", "all")
    assert done.code == 1
    assert done.of(FILE, copy="hub-cache")["verdict"] == "ok"
    assert done.of(FILE, copy="usb")["verdict"] == "missing"
    assert held.run("backup").code == 0
    assert held.run("verify", "--copy", "all").code == 0


def test_a_stray_file_in_a_replica_is_told_and_is_no_failure(held: World) -> None:
    held.run("backup")
    (snapshot,) = (held.usb / "mvdream").iterdir()
    (snapshot / "notes.txt").write_text("mine")
    done = held.run("verify", "--copy", "usb")
    assert (done.code, done.of("notes.txt")["verdict"]) == (0, "stray")


@pytest.mark.parametrize("name", ["SHA256SUMS", "RESTORE.txt"])
def test_a_record_for_people_that_would_mislead_them_is_told_and_written_anew(held: World, name: str) -> None:
    """A wrong SHA256SUMS calls good files bad on the day when there is nothing but `sha256sum -c`."""
    held.run("backup")
    (snapshot,) = (held.usb / "mvdream").iterdir()
    right = (snapshot / name).read_bytes()
    held.flip(snapshot / name, 20)
    done = held.run("verify", "--copy", "usb")
    assert (done.code, done.of(name)["verdict"], done.of(FILE)["verdict"]) == (1, "corrupt", "ok")
    assert held.run("repair", "--copy", "usb").code == 0
    assert (snapshot / name).read_bytes() == right
    (snapshot / name).unlink()
    assert held.run("verify", "--copy", "usb").of(name)["verdict"] == "missing"
    assert held.run("backup").code == 0
    assert held.run("verify", "--copy", "usb").code == 0


def test_a_drive_mounted_elsewhere_has_no_wrong_record_for_that(held: World) -> None:
    held.run("backup")
    moved = held.usb.rename(held.home / "elsewhere")
    held.config.write_text(held.config.read_text().replace(str(held.usb), str(moved)))
    assert held.run("verify", "--copy", "usb").code == 0


def test_a_snapshot_that_lost_its_manifest_has_its_files_judged_all_the_same(held: World) -> None:
    held.run("backup")
    (snapshot,) = (held.usb / "mvdream").iterdir()
    (snapshot / "manifest.json").unlink()
    done = held.run("verify", "--copy", "usb")
    assert (done.code, done.of("manifest.json")["verdict"], done.of(FILE)["verdict"]) == (1, "missing", "ok")
    assert held.run("repair", "--copy", "usb").code == 0 == held.run("verify", "--copy", "usb").code


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_pipe_or_a_device_under_a_records_name_is_not_waited_for(held: World, kind: str) -> None:
    held.run("backup")
    (snapshot,) = (held.usb / "mvdream").iterdir()
    (ours,) = held.models.glob(".steelyard/manifests/mvdream/*.json")
    for path in (snapshot / "manifest.json", snapshot / "SHA256SUMS", ours, held.models / "model_info.json"):
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
    assert held.run("verify", "--copy", "all", timeout=60).code == 1
    assert held.run("backup", timeout=60).code == 0
    assert held.run("repair", "--copy", "all", timeout=60).code == 0
    assert held.run("verify", "--copy", "all").code == 0


def test_a_replica_whose_manifest_contradicts_the_lock_is_not_believed(held: World) -> None:
    from steelyard.manifest import FileEntry, Manifest

    held.run("backup")
    (snapshot,) = (held.usb / "mvdream").iterdir()
    manifest = Manifest.parse((snapshot / "manifest.json").read_bytes(), "x")
    entry = manifest[FILE]
    forged = FileEntry(entry.path, entry.size_bytes, "0" * 64, entry.crc64nvme, entry.piece_bytes, entry.pieces, "0" * 64)
    (snapshot / "manifest.json").write_bytes(manifest.with_file(forged).dump())
    done = held.run("verify", "--copy", "usb")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "corrupt")


def test_scrub_looks_at_the_oldest_proof_first_and_stops_at_its_budget(held: World) -> None:
    held.run("backup")
    held.run("verify")
    first = held.run("scrub", "--budget", "1MB")
    assert first.code == 0
    assert len(first.rows) == 1
    assert first.json["files_left"] == 2
    seen = {first.rows[0]["copy"]}
    for _ in range(2):
        seen |= {row["copy"] for row in held.run("scrub", "--budget", "1MB").rows}
    assert seen == {"store", "hub-cache", "usb"}
    assert held.run("scrub", "--budget", "soon").code == 2
