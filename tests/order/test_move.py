"""move: the store goes to another drive; nothing is current there before it is proven, nothing is lost where it was."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from steelyard.backup import backup
from steelyard.config import load_config
from steelyard.download import download
from steelyard.former import formers, write_former
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.backup.conftest import Plug
from tests.conftest import FILE, REPO, World
from tests.order.conftest import quick


def verdicts(world: World, copy: str = "store", **look: bool) -> set[str]:
    return {row.outcome for row in verify(world.site(), copy=copy, **look).rows}


def whole(world: World, models: Path, *, names: Path | None = None) -> None:
    """The store is at *models*, proven, and everything that programs rely on agrees; *names*: the path that programs know."""
    site = Site.open(world.config)
    assert site.config.store.models == (names or models)
    assert verdicts(world) == {"ok"}
    info = json.loads((models / "model_info.json").read_text())[FILE]
    assert info["path"] == str((names or models) / FILE) and Path(info["path"]).stat().st_size == info["size_bytes"]
    found = hf_hub_download(REPO, FILE, cache_dir=site.hub_cache.root, local_files_only=True)
    assert Path(found).read_bytes() == (models / FILE).read_bytes()
    assert quick(world, "status").code == 0


def test_the_store_goes_to_another_drive_with_all_that_lies_in_it(held: World, plug: Plug) -> None:
    there = plug("ext4", 120)
    (held.models / "mine").mkdir()
    (held.models / "mine" / "notes.txt").write_text("mine")
    (held.models / "mine" / "here").symlink_to("notes.txt")
    assert backup(held.site()).ok
    before = held.config.read_text()
    to = there.point / "weights"

    done = quick(held, "move", str(to))
    row = done.of(FILE)
    assert (done.code, row["action"], row["bytes_written"]) == (0, "copied", held.weights.stat().st_size)
    assert held.config.read_text() == before.replace(f'models = "{held.models}"', f'models = "{to}"')
    whole(held, to)
    assert (to / "mine" / "notes.txt").read_text() == "mine" and (to / "mine" / "here").readlink() == Path("notes.txt")
    assert Site.open(held.config).history.events("download", "mvdream"), "the history came along"
    assert quick(held, "verify", "--quick").rows[0]["verdict"] == "ok", "and how the files lie now"
    assert held.weights.exists(), "the former place stays"
    assert quick(held, "backup").of(FILE)["action"] == "unchanged"
    assert quick(held, "move", str(to)).rows[0]["action"] == "unchanged"


def test_the_former_place_goes_by_clean_once_the_new_one_is_proven_and_what_is_not_ours_stays(held: World, plug: Plug) -> None:
    (held.models / "notes.txt").write_text("mine")
    to = plug("ext4", 120).point / "weights"
    assert quick(held, "move", str(to)).code == 0
    told = [row for row in quick(held, "clean").rows if "former place" in row["reason"]]
    assert {Path(row["path"]).name for row in told} == {FILE, "model_info.json", ".steelyard"}
    assert sum(row["bytes"] for row in told) >= held.weights.stat().st_size
    assert quick(held, "clean", "--apply").code == 0
    assert [path.name for path in held.models.iterdir()] == ["notes.txt"]
    whole(held, to)

    (to / FILE).touch()
    (held.models / FILE).write_bytes(b"x")
    assert quick(held, "clean").rows == [], "nothing goes while the new place is unproven"


def test_a_former_place_that_holds_nothing_else_goes_whole(held: World, plug: Plug) -> None:
    to = plug("ext4", 120).point / "weights"
    assert quick(held, "move", str(to)).code == 0
    assert quick(held, "clean", "--apply").code == 0
    assert not held.models.exists()
    assert quick(held, "clean").rows == []
    whole(held, to)


def test_a_config_that_still_names_the_former_place_is_told_where_the_store_is(held: World, tmp_path: Path) -> None:
    before = held.config.read_text()
    assert quick(held, "move", str(tmp_path / "new")).code == 0
    held.config.write_text(before)
    done = quick(held, "download")
    assert done.code == 3 and str(tmp_path / "new") in done.errors[0]["message"]
    assert done.errors[0]["hint"]


def test_with_link_the_old_path_leads_there_and_the_config_stays(held: World, plug: Plug) -> None:
    before, to = held.config.read_bytes(), plug("ext4", 120).point / "weights"
    assert quick(held, "move", str(to), "--link").code == 0
    assert held.models.is_symlink() and held.models.resolve() == to
    assert held.config.read_bytes() == before
    whole(held, to, names=held.models)
    aside = held.models.with_name("models.moved")
    assert (aside / FILE).exists()

    # And on to the next drive, from a folder that is a link by now.
    further = plug("ext4", 120, "further").point / "weights"
    assert quick(held, "move", str(further), "--link").code == 0
    assert held.models.resolve() == further and (to / FILE).exists()
    whole(held, further, names=held.models)
    assert quick(held, "clean", "--apply").code == 0
    assert not aside.exists() and not to.exists()
    whole(held, further, names=held.models)


def test_two_moves_that_end_in_one_second_both_leave_word_of_where_they_came_from(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_former(tmp_path, tmp_path / name, "", {})
    assert [one.path.name for one in formers(tmp_path)] == ["first", "second"]


def test_the_hub_cache_comes_along_when_it_is_asked_for(held: World, plug: Plug) -> None:
    assert quick(held, "views", "hardlink").code == 0
    there = plug("ext4", 120)
    done = quick(held, "move", str(there.point / "m"))
    assert done.code == 3 and "--hf-home" in done.errors[0]["hint"], "hard links can't reach another drive"
    assert quick(held, "move", str(there.point / "m"), "--hf-home", str(there.point / "hf")).code == 0
    whole(held, there.point / "m")
    store = load_config(held.config).store
    assert store.hf_home == there.point / "hf" and (there.point / "m" / FILE).stat().st_nlink == 2


def test_on_one_drive_no_byte_is_copied(held: World, tmp_path: Path) -> None:
    done = quick(held, "move", str(tmp_path / "elsewhere"))
    assert (done.of(FILE)["action"], done.of(FILE)["bytes_written"]) == ("linked", 0)
    whole(held, tmp_path / "elsewhere")


def test_and_back_again(held: World, plug: Plug) -> None:
    to = plug("ext4", 120).point / "weights"
    assert quick(held, "move", str(to)).code == 0
    back = quick(held, "move", str(held.models))
    assert (back.code, back.of(FILE)["action"]) == (0, "unchanged")
    whole(held, held.models)
    assert quick(held, "download").code == 0


def test_held_revisions_come_along_and_rollback_works(world: World, hub: LoopbackHub, second: Path, plug: Plug) -> None:
    assert download(world.site()).ok
    hub.add_revision(REPO, {FILE: second})
    assert quick(world, "update", "mvdream").code == 0
    to = plug("ext4", 200).point / "weights"
    assert quick(world, "move", str(to)).code == 0
    assert quick(world, "rollback", "mvdream").code == 0
    whole(world, to)


def test_a_piece_that_rotted_comes_from_another_copy(held: World, plug: Plug) -> None:
    good = held.weights.read_bytes()
    held.flip(held.weights, 9_000_000)
    to = plug("ext4", 120).point / "weights"
    done = quick(held, "move", str(to))
    assert done.code == 0 and "hub-cache" in done.of(FILE)["sources"]
    assert (to / FILE).read_bytes() == good


def test_a_file_that_is_good_nowhere_keeps_the_store_where_it_is(held: World, hub: LoopbackHub, tmp_path: Path) -> None:
    held.flip(held.weights, 9_000_000)
    for blob in (held.home / "hf/hub").glob("*/blobs/*"):
        if blob.stat().st_size > 1 << 20:
            held.flip(blob, 9_000_000)
    before = held.config.read_bytes()
    held.config.write_bytes(before.replace(hub.endpoint.encode(), b"http://127.0.0.1:9").replace(b"patience = 4", b"patience = 0"))
    done = quick(held, "move", str(tmp_path / "new"))
    assert done.code in {1, 4}
    assert load_config(held.config).store.models == held.models
    held.config.write_bytes(before)
    assert quick(held, "move", str(tmp_path / "new")).code == 0, "the Hub is back, and the piece comes from there"
    assert verdicts(held) == {"ok"}


def test_what_can_not_be_is_refused_before_anything_is_written(
    held: World, tmp_path: Path, plug: Plug, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "theirs").write_text("x")
    (tmp_path / "file").write_text("x")
    small = plug("ext4", 16)
    for where, code, word in (
        (held.models / "inside", 2, "inside one another"),
        (held.usb / "sub", 2, "replica"),
        (taken, 3, "not empty"),
        (tmp_path / "file", 3, "is a file"),
        (small.point / "m", 3, "free"),
    ):
        done = quick(held, "move", str(where))
        assert (done.code, word in done.errors[0]["message"]) == (code, True), done.errors
    assert load_config(held.config).store.models == held.models
    assert [path.name for path in taken.iterdir()] == ["theirs"] and not (small.point / "m").exists()

    from steelyard import fstab as table
    from steelyard import move

    fstab = tmp_path / "fstab"
    fstab.write_text(f"# drives\nUUID=1 / ext4 defaults 0 1\nUUID=2 {tmp_path}/absent ext4 nofail 0 2\n")
    monkeypatch.setattr(table, "FSTAB", fstab)
    report = move.move(held.site(), tmp_path / "absent" / "weights")
    assert (report.exit_code, report.errors[0].code) == (3, "mount-absent")


@pytest.mark.parametrize("link", [False, True])
def test_killed_anywhere_there_is_always_one_whole_store_and_the_next_run_ends_it(held: World, plug: Plug, link: bool) -> None:
    to = plug("ext4", 120).point / "weights"
    arguments = ["move", str(to), *(["--link"] if link else [])]
    for wait_s in (0.5, 0.7, 0.8, 0.9, 1.0, 1.2):
        process = held.start(*arguments)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert verdicts(held) == {"ok"}
    assert quick(held, *arguments).code == 0
    whole(held, to, names=held.models if link else None)
    assert not list((to / ".steelyard" / "staging").glob("*"))
    assert not (to / ".steelyard" / "moving.json").exists()
