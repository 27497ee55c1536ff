"""A world that holds its model, and the next version of it, for what is told of a change upstream and what is taken of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.download import download
from steelyard.standins.weights import second_revision
from tests.conftest import World

LAYER = "model.diffusion_model.l{}.weight"


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("newer") / "w.pt"
    second_revision(checkpoint, path, {LAYER.format(3), LAYER.format(7)})
    return path


@pytest.fixture
def held(world: World) -> World:
    """The world with its model, brought in this process: most of what follows needs no other."""
    assert download(world.site()).ok
    return world


def tree(world: World) -> dict[str, tuple[int, int]]:
    """Everything that is held: weights, hub cache, lock, manifests."""
    paths = [world.home / "steelyard.lock", world.models / "model_info.json", world.weights]
    paths += [*world.models.glob(".steelyard/manifests/**/*.json"), *world.home.glob("hf/hub/**/*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}
