"""What changed upstream, each outcome by its name; nothing held is touched by a check; an update is taken whole or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weights import second_revision, write_torch_zip
from tests.conftest import FILE, REPO, World

LAYER = "model.diffusion_model.l{}.weight"


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("newer") / "w.pt"
    second_revision(checkpoint, path, {LAYER.format(3), LAYER.format(7)})
    return path


@pytest.fixture(scope="session")
def reshaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reshaped") / "w.pt"
    specs = {LAYER.format(n): ("float32", (512, 1024) if n else (256, 1024), n) for n in range(9)}
    write_torch_zip(path, {**specs, "model.diffusion_model.extra": ("float16", (7,), 1)}, under="state_dict")
    return path


@pytest.fixture
def held(world: World) -> World:
    assert world.run("download").code == 0
    return world


def tree(world: World) -> dict[str, tuple[int, int]]:
    """Everything that is held: weights, hub cache, lock, manifests."""
    paths = [world.home / "steelyard.lock", world.models / "model_info.json", world.weights]
    paths += [*world.models.glob(".steelyard/manifests/**/*.json"), *world.home.glob("hf/hub/**/*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flag(hub: LoopbackHub) -> None:
    hub.set_scan(REPO, FILE, "unsafe", imports=("os.system",))


def gate(hub: LoopbackHub) -> None:
    hub.repo(REPO).gated = "manual"


def privatise(hub: LoopbackHub) -> None:
    hub.repo(REPO).private = True


HISTORIES: dict[str, tuple[Callable[[LoopbackHub, Path], object], str, int]] = {
    "nothing new": (lambda hub, new: None, "unchanged", 0),
    "a commit that does not touch our file": (lambda hub, new: hub.add_revision(REPO, {"README.md": b"new words"}), "unchanged", 0),
    "two such commits": (lambda hub, new: [hub.add_revision(REPO, {"README.md": word}) for word in (b"one", b"two")], "unchanged", 0),
    "our file changed": (lambda hub, new: hub.add_revision(REPO, {FILE: new}), "update-available", 0),
    "changed, then another commit": (
        lambda hub, new: [hub.add_revision(REPO, {FILE: new}), hub.add_revision(REPO, {"x": b"y"})],
        "update-available",
        0,
    ),
    "changed and back again": (
        lambda hub, new: [hub.add_revision(REPO, {FILE: new}), hub.add_revision(REPO, {FILE: OLD[0]})],
        "unchanged",
        0,
    ),
    "our file removed": (lambda hub, new: hub.add_revision(REPO, {FILE: None}), "update-available", 0),
    "replaced by a small text": (lambda hub, new: hub.add_revision(REPO, {FILE: b"placeholder"}), "update-available", 0),
    "history rewritten": (lambda hub, new: hub.force_push(REPO, {FILE: new}), "history-rewritten", 1),
    "rewritten with the same file": (lambda hub, new: hub.force_push(REPO, {FILE: OLD[0]}), "history-rewritten", 1),
    "repo renamed": (lambda hub, new: hub.rename_repo(REPO, "MVDream/MVDream2"), "unchanged", 0),
    # Without a token the Hub answers 401 for what is gone as for what is private: it tells strangers neither.
    "repo deleted, no token": (lambda hub, new: hub.delete_repo(REPO), "access-denied", 4),
    "gated": (lambda hub, new: gate(hub), "access-denied", 4),
    "private": (lambda hub, new: privatise(hub), "access-denied", 4),
    "scan flags it": (lambda hub, new: flag(hub), "scan-flagged", 1),
    "500s": (lambda hub, new: hub.faults.add("api", "500"), "unreachable", 4),
    "two 503s and then well": (lambda hub, new: hub.faults.add("api", "503", times=2), "unchanged", 0),
    "a portal's page": (lambda hub, new: hub.faults.add("api", "html"), "unreachable", 4),
    "no network": (lambda hub, new: hub.down(), "unreachable", 4),
    "another branch moved": (lambda hub, new: hub.add_revision(REPO, {FILE: new}, branch="dev"), "unchanged", 0),
}
OLD: list[Path] = []


@pytest.mark.parametrize("story", HISTORIES)
def test_each_upstream_history_has_its_outcome_and_touches_nothing(held: World, newer: Path, checkpoint: Path, story: str) -> None:
    OLD[:] = [checkpoint]
    happen, verdict, code = HISTORIES[story]
    before = tree(held)
    happen(held.hub, newer)
    done = held.run("check-updates")
    assert (done.rows[0]["verdict"], done.code) == (verdict, code), done.stdout
    assert tree(held) == before
    assert done.rows[0]["held_commit"]
    if verdict == "update-available":
        assert done.rows[0]["changed_files"] == [FILE]
        assert Path(done.rows[0]["note"]).read_text().startswith("# mvdream")


def test_a_deleted_repo_is_gone_to_whom_the_hub_knows(held: World) -> None:
    held.hub.add_token("hf_known", "kim")
    held.environment["HF_TOKEN"] = "hf_known"
    held.hub.delete_repo(REPO)
    done = held.run("check-updates")
    assert (done.code, done.rows[0]["verdict"]) == (4, "gone")
    assert "hf_known" not in done.stdout + done.stderr


def test_a_moved_tag_is_followed_and_a_fixed_commit_is_only_watched(held: World, newer: Path) -> None:
    commit = held.run("check-updates").rows[0]["held_commit"]
    held.hub.repo(REPO).tags["v1"] = commit
    (held.home / "steelyard.lock").unlink()
    held.config.write_text(held.config.read_text().replace(f'files = ["{FILE}"]', f'files = ["{FILE}"]\nrevision = "v1"'))
    assert held.run("download").code == 0
    new = held.hub.add_revision(REPO, {FILE: newer})
    assert held.run("check-updates").rows[0]["verdict"] == "unchanged"
    held.hub.repo(REPO).tags["v1"] = new
    assert held.run("check-updates").rows[0]["verdict"] == "update-available"
    (held.home / "steelyard.lock").unlink()
    held.config.write_text(held.config.read_text().replace('"v1"', f'"{commit}"'))
    assert held.run("download").code == 0
    assert held.run("check-updates").rows[0]["verdict"] == "unchanged"


def test_the_note_names_exactly_the_tensors_that_differ(held: World, newer: Path) -> None:
    held.hub.add_revision(REPO, {FILE: newer}, title="Better layers", author="kim")
    held.hub.reset_counters()
    row = held.run("check-updates").rows[0]
    assert row["compatible"] is True
    assert set(row["tensors"]["changed"]) == {LAYER.format(3), LAYER.format(7)}
    assert held.hub.bytes_sent("cdn") < 2 << 20
    note = Path(row["note"]).read_text()
    assert "Drop-in" in note
    assert "Better layers" in note
    assert f"`{LAYER.format(3)}`, `{LAYER.format(7)}`" in note
    assert "steelyard rollback mvdream" in note


def test_a_revision_that_a_strict_loader_refuses_is_said_to_be_none_to_drop_in(held: World, reshaped: Path) -> None:
    held.hub.add_revision(REPO, {FILE: reshaped})
    row = held.run("check-updates").rows[0]
    assert row["compatible"] is False
    assert row["tensors"]["reshaped"] == [LAYER.format(0)]
    assert row["tensors"]["removed"] == [LAYER.format(9)]
    assert row["tensors"]["added"] == ["model.diffusion_model.extra"]
    assert "Not drop-in" in Path(row["note"]).read_text()


def test_an_update_is_taken_and_gone_back_from_without_the_network(held: World, newer: Path, checkpoint: Path) -> None:
    first = held.run("check-updates").rows[0]["held_commit"]
    second = held.hub.add_revision(REPO, {FILE: newer})
    done = held.run("update", "mvdream")
    assert (done.code, done.rows[0]["action"], done.rows[0]["commit"]) == (0, "updated", second)
    assert sha256(held.weights) == sha256(newer)
    assert held.run("verify", "--copy", "hub-cache").code == 0
    assert held.run("verify").code == 0
    assert second in (held.models / "model_info.json").read_text()
    held.hub.down()
    began = time.monotonic()
    back = held.run("rollback", "mvdream")
    assert time.monotonic() - began < 10
    assert (back.code, back.rows[0]["commit"]) == (0, first)
    assert sha256(held.weights) == sha256(checkpoint)
    assert held.run("verify").code == 0
    assert held.run("verify", "--copy", "hub-cache").code == 0
    assert (held.home / "hf/hub/models--MVDream--MVDream/refs/main").read_text() == first
    again = held.run("rollback", "mvdream")
    assert (again.code, again.rows[0]["commit"]) == (0, second)
    assert sha256(held.weights) == sha256(newer)


def test_the_replica_keeps_both_revisions(held: World, newer: Path) -> None:
    held.run("backup")
    held.hub.add_revision(REPO, {FILE: newer})
    held.run("update", "mvdream")
    assert held.run("verify", "--copy", "usb").of(FILE, verdict="stale")
    assert held.run("backup").code == 0
    assert len(list((held.usb / "mvdream").iterdir())) == 2
    assert held.run("verify", "--copy", "usb").code == 0


@pytest.mark.parametrize(
    "broken", [b"\x80\x02cos\nsystem\n(S'true'\ntR." + bytes(3_000_000), b"<html>" + b"x" * 2_000_000, b"PK\x03\x04" + b"\0" * 2_000_000]
)
def test_a_new_file_that_does_not_load_is_not_switched_to(held: World, broken: bytes) -> None:
    before = tree(held)
    held.hub.add_revision(REPO, {FILE: broken})
    done = held.run("update", "mvdream")
    assert done.code == 1
    assert done.errors[0]["code"] == "not-loadable"
    assert tree(held) == before
    assert held.run("verify").code == 0


def test_no_room_for_the_new_version_leaves_the_old_one_current(held: World, newer: Path) -> None:
    before = tree(held)
    held.hub.add_revision(REPO, {FILE: newer})
    held.environment["STEELYARD_STORE__MIN_FREE"] = "900 TB"
    assert held.run("update", "mvdream").code == 3
    assert tree(held) == before


def test_wrong_bytes_of_the_new_version_leave_the_old_one_current(held: World, newer: Path) -> None:
    before = tree(held)
    held.hub.add_revision(REPO, {FILE: newer})
    held.hub.faults.add("cdn", "flip byte 7000000")
    assert held.run("update", "mvdream").code == 1
    assert tree(held) == before


def test_nothing_to_go_back_to_says_where_an_older_one_may_be(held: World) -> None:
    done = held.run("rollback", "mvdream")
    assert done.code == 1
    assert "restore" in done.errors[0]["hint"]


def test_an_update_of_the_commit_alone_moves_the_lock_and_fetches_nothing(held: World) -> None:
    new = held.hub.add_revision(REPO, {"README.md": b"words"})
    held.hub.reset_counters()
    done = held.run("update", "mvdream")
    assert (done.code, done.rows[0]["commit"], done.rows[0]["bytes_fetched"]) == (0, new, 0)
    assert held.hub.bytes_sent("cdn") == 0
    assert held.run("verify").code == 0


@pytest.mark.parametrize("seed", range(2))
def test_an_update_killed_anywhere_leaves_one_whole_revision_current(held: World, newer: Path, checkpoint: Path, seed: int) -> None:
    rng = random.Random(seed)
    right = {sha256(newer), sha256(checkpoint)}
    held.hub.add_revision(REPO, {FILE: newer})
    for _ in range(4):
        process = held.start("update", "mvdream", "--json", start_new_session=True)
        time.sleep(rng.uniform(0.3, 3.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        assert sha256(held.weights) in right
        done = held.run("verify")
        assert done.of(FILE)["verdict"] == "ok", done.stdout
    assert held.run("update", "mvdream").code == 0
    assert sha256(held.weights) == sha256(newer)
    assert held.run("rollback", "mvdream").code == 0
    assert sha256(held.weights) == sha256(checkpoint)


@pytest.mark.parametrize("call", ["replace", "link", "agree"])
def test_a_switch_that_dies_at_its_worst_moments_is_taken_back_or_finished(held: World, newer: Path, checkpoint: Path, call: str) -> None:
    """The process is killed just before each effect of the switch itself, by a fault planted in it."""
    held.hub.add_revision(REPO, {FILE: newer})
    held.hub.add_revision(REPO, {"other.bin": b"x" * 10})
    script = f"""
import os, signal, sys
from steelyard import switch, disk
from steelyard.site import Site
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
if "{call}" == "agree": Site.agree = die
else:
    real = switch._exchange
    def exchange(final, keep, incoming):
        if "{call}" == "link": die()
        os.link(final, keep); os.replace(incoming, final); die()
    switch._exchange = exchange
from steelyard.cli import main
main(["update", "mvdream", "--json"])
"""
    import subprocess
    import sys

    code = subprocess.run([sys.executable, "-c", script], cwd=held.home, env=held.environment, capture_output=True, check=False).returncode
    assert code == -signal.SIGKILL
    assert held.run("verify").of(FILE)["verdict"] == "ok"
    assert sha256(held.weights) == sha256(checkpoint)
    assert held.run("update", "mvdream").code == 0
    assert sha256(held.weights) == sha256(newer)
