"""download --locked: the same bytes as the team agreed on, or a sentence; never another revision, never another lock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from steelyard.download import download
from steelyard.standins.weights import second_revision
from tests.conftest import FILE, REPO, World


@pytest.fixture
def team(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Another machine with the team's config and lock, and nothing held."""
    assert download(world.site()).ok
    other = World(tmp_path_factory.mktemp("other"), world.hub)
    other.configure()
    shutil.copy(world.home / "steelyard.lock", other.home)
    world.hub.reset_counters()
    return other


@pytest.fixture
def newer(tmp_path: Path, checkpoint: Path) -> Path:
    second_revision(checkpoint, tmp_path / "w.pt", {"model.diffusion_model.l3.weight"})
    return tmp_path / "w.pt"


def lock(world: World) -> bytes:
    return (world.home / "steelyard.lock").read_bytes()


def test_the_same_bytes_though_the_branch_has_moved(team: World, newer: Path, checkpoint: Path) -> None:
    before = lock(team)
    team.hub.add_revision(REPO, {FILE: newer})
    done = team.run("download", "--locked")
    assert (done.code, done.rows[0]["action"]) == (0, "downloaded")
    assert team.weights.read_bytes() == checkpoint.read_bytes()
    assert lock(team) == before
    commit = done.rows[0]["commit"]
    asked = [one.path for one in team.hub.requests if "/api/" in one.path]
    assert [path for path in asked if not path.endswith(f"/revision/{commit}")] == [], (
        "no branch is resolved, only the agreed commit asked about"
    )


def test_a_rewritten_history_is_a_failure_with_a_sentence(team: World, newer: Path) -> None:
    before = lock(team)
    team.hub.force_push(REPO, {FILE: newer})
    done = team.run("download", "--locked")
    assert (done.code, done.errors[0]["code"]) == (4, "gone")
    assert not team.weights.exists()
    assert lock(team) == before


def test_other_bytes_under_the_locked_commit_are_a_failure(team: World, checkpoint: Path) -> None:
    team.hub.faults.add("cdn", "flip byte 5000000")
    done = team.run("download", "--locked")
    assert (done.code, done.errors[0]["code"]) == (1, "corrupt")
    assert not team.weights.exists()


def test_no_entry_in_the_lock_is_no_invitation_to_make_one(team: World) -> None:
    (team.home / "steelyard.lock").unlink()
    done = team.run("download", "--locked")
    assert (done.code, done.errors[0]["code"]) == (2, "lock-mismatch")
    assert "has no entry for it" in done.errors[0]["message"]
    assert not (team.home / "steelyard.lock").exists()
    assert not team.hub.requests


def test_a_file_that_the_lock_does_not_hold_is_not_looked_up(team: World) -> None:
    before = lock(team)
    team.configure(files=f'["{FILE}", "README.md"]')
    done = team.run("download", "--locked")
    assert (done.code, done.errors[0]["code"]) == (2, "lock-mismatch")
    assert "README.md" in done.errors[0]["message"]
    assert lock(team) == before
    assert not team.hub.requests
