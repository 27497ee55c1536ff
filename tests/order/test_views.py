"""views: how store and hub cache share bytes is changed later, by command; only a proven file ever takes another's name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir

from steelyard.config import load_config
from steelyard.extents import overlap, share_bytes
from steelyard.site import Site
from tests.backup.conftest import Plug
from tests.conftest import FILE, REPO, World
from tests.order.conftest import quick


def blob(world: World) -> Path:
    (found,) = [path for path in (world.home / "hf/hub/models--MVDream--MVDream/blobs").iterdir() if path.stat().st_size > 1 << 20]
    return found


def used(folder: Path) -> int:
    seen = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_blocks * 512 for one in seen}.values())


def resolvable(world: World) -> None:
    cache = world.home / "hf/hub"
    found = hf_hub_download(REPO, FILE, cache_dir=cache, local_files_only=True)
    assert Path(found).read_bytes() == world.weights.read_bytes()
    assert scan_cache_dir(cache).warnings == []
    assert quick(world, "verify", "--copy", "all").rows


def test_two_copies_become_one_file_and_two_again_and_the_config_says_so(held: World) -> None:
    held.config.write_text(held.config.read_text().replace('views = "copy"', 'views   =  "copy"   # two real copies, on purpose'))
    before = held.config.read_text()
    size, was = held.weights.stat().st_size, used(held.home)
    done = quick(held, "views", "hardlink")
    row = done.of(FILE)
    assert (done.code, row["action"], row["copy"]) == (0, "hardlinked", "hub-cache")
    assert row["bytes"] == row["bytes_freed"] == size
    assert abs(was - used(held.home) - size) < size / 100
    assert blob(held).samefile(held.weights)
    assert held.config.read_text() == before.replace('"copy"  ', '"hardlink"  '), "that value and nothing else"
    assert load_config(held.config).store.views == "hardlink"
    assert quick(held, "verify", "--quick").rows[0]["verdict"] == "ok", "a new name makes no file unproven"
    resolvable(held)

    again = quick(held, "views", "hardlink")
    assert (again.code, again.of(FILE)["action"], again.of(FILE)["bytes"]) == (0, "unchanged", 0)

    back = quick(held, "views", "copy")
    assert (back.code, back.of(FILE)["action"], back.of(FILE)["bytes_written"]) == (0, "copied", size)
    assert not blob(held).samefile(held.weights)
    assert held.config.read_text() == before
    resolvable(held)


def test_what_comes_later_is_shared_as_the_command_said(world: World) -> None:
    assert quick(world, "views", "hardlink").code == 0
    assert quick(world, "download").code == 0
    assert blob(world).samefile(world.weights)


def test_a_rotten_file_of_the_store_never_takes_the_place_of_a_good_one(held: World) -> None:
    held.flip(held.weights, 9_000_000)
    good = blob(held).read_bytes()
    done = quick(held, "views", "hardlink")
    assert (done.code, done.errors[0]["code"]) == (1, "corrupt")
    assert "8,388,608" in done.errors[0]["message"] and "repair" in done.errors[0]["hint"]
    assert blob(held).read_bytes() == good
    assert quick(held, "repair").code == 0
    assert quick(held, "views", "hardlink").of(FILE)["action"] == "hardlinked"
    assert held.weights.read_bytes() == good


def test_a_rotten_blob_is_kept_as_evidence(held: World) -> None:
    held.flip(blob(held), 5)
    bad = blob(held).read_bytes()
    assert quick(held, "views", "hardlink").code == 0
    kept = list((held.home / "hf/.steelyard/quarantine").glob(f"*/{blob(held).name}"))
    assert [path.read_bytes() for path in kept] == [bad]
    resolvable(held)


def test_what_the_file_system_cannot_is_refused_in_a_sentence_and_changes_nothing(held: World) -> None:
    before = (held.config.read_bytes(), blob(held).stat())
    done = quick(held, "views", "reflink")
    if done.code == 0:
        pytest.skip("this file system can reflink")
    assert (done.code, done.errors[0]["code"]) == (3, "refused")
    assert "reflinks" in done.errors[0]["message"] and "nothing was changed" in done.errors[0]["message"]
    assert (held.config.read_bytes(), blob(held).stat()) == before


def test_across_file_systems_is_refused(held: World, plug: Plug) -> None:
    there = plug("ext4", 100)
    held.config.write_text(held.config.read_text().replace(f"{held.home}/hf", f"{there.point}/hf"))
    assert quick(held, "download").code == 0
    done = quick(held, "views", "hardlink")
    assert done.code == 3 and "different file systems" in done.errors[0]["message"]


def test_copies_that_do_not_fit_are_refused_before_anything_changes(held: World) -> None:
    assert quick(held, "views", "hardlink").code == 0
    held.config.write_text(held.config.read_text().replace('min_free = "1 MB"', 'min_free = "900 TB"'))
    before = held.config.read_bytes()
    done = quick(held, "views", "copy")
    assert (done.code, done.errors[0]["code"]) == (3, "no-space")
    assert held.config.read_bytes() == before and blob(held).samefile(held.weights)


def test_an_unknown_kind_and_an_environment_that_says_otherwise_are_wrong_usage(held: World) -> None:
    assert quick(held, "views", "symlink").code == 2
    held.environment["STEELYARD_STORE__VIEWS"] = "copy"
    done = quick(held, "views", "hardlink")
    assert done.code == 2 and "STEELYARD_STORE__VIEWS" in done.errors[0]["message"]


def test_a_config_that_is_a_link_stays_one(held: World) -> None:
    real = held.home / "dotfiles.toml"
    held.config.rename(real)
    held.config.symlink_to(real)
    assert quick(held, "views", "hardlink").code == 0
    assert held.config.is_symlink() and '"hardlink"' in real.read_text()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_share_blocks_and_are_two_files(world: World, plug: Plug, kind: str) -> None:
    there = plug(kind, 400)
    for old, new in ((f"{world.models}", f"{there.point}/models"), (f"{world.home}/hf", f"{there.point}/hf")):
        world.config.write_text(world.config.read_text().replace(old, new))
    assert quick(world, "download").code == 0
    site = Site.open(world.config)
    store = site.store.path_of_model("mvdream", FILE)

    def cached() -> Path:
        (found,) = [path for path in there.point.glob("hf/hub/*/blobs/*") if path.stat().st_size > 1 << 20]
        return found

    assert not overlap(store, cached())
    done = quick(world, "views", "reflink")
    assert (done.code, done.of(FILE)["action"]) == (0, "reflinked")
    assert share_bytes(store, cached()) and not store.samefile(cached())
    assert quick(world, "views", "reflink").of(FILE)["action"] == "unchanged"
    world.flip(cached(), 100)
    assert quick(world, "verify").code == 0, "a change of one leaves the other alone"
    world.flip(cached(), 100)

    assert quick(world, "views", "hardlink").of(FILE)["action"] == "hardlinked"
    assert store.samefile(cached())
    assert quick(world, "views", "auto").of(FILE)["action"] == "reflinked"
    back = quick(world, "views", "copy")
    assert back.of(FILE)["action"] == "copied" and not overlap(store, cached())
    assert quick(world, "verify", "--copy", "hub-cache").code == 0


@pytest.mark.parametrize("kind", ["hardlink", "copy"])
def test_killed_anywhere_it_leaves_a_whole_cache_and_goes_on(held: World, kind: str) -> None:
    if kind == "copy":
        assert quick(held, "views", "hardlink").code == 0
    good = held.weights.read_bytes()
    for wait_s in (0.25, 0.4, 0.5, 0.6):
        process = held.start("views", kind)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert blob(held).read_bytes() == good
    assert quick(held, "views", kind).code == 0
    assert blob(held).samefile(held.weights) == (kind == "hardlink")
    assert not list((held.home / "hf/.steelyard/staging").glob("*.partial"))
    assert os.stat(held.weights).st_nlink == (2 if kind == "hardlink" else 1)
    resolvable(held)
