"""A world whose replica lies on a drive of its own: a real file system that can be pulled out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from steelyard.download import download
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weights import write_torch_zip
from tests.backup.drives import Drive, Unavailable, drive
from tests.conftest import FILE, REPO, World


class Plug(Protocol):
    def __call__(self, kind: str = "ext4", size_mb: int = 100, name: str = "drive") -> Drive: ...


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    """Makes and plugs in drives; all are gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("loop mounts need root")
    with ExitStack() as stack:

        def make(kind: str = "ext4", size_mb: int = 100, name: str = "drive") -> Drive:
            try:
                return stack.enter_context(drive(tmp_path, kind, size_mb, name))
            except Unavailable as error:
                pytest.skip(f"{kind}: {error}")

        yield make


def on_drive(world: World, there: Drive, more: str = "", **options: str) -> None:
    """Point the replica usb at a folder of the drive."""
    world.configure(**options)
    text = world.config.read_text()
    text = text.replace(
        f'path = "{world.usb}"\nmount_point = false', f'path = "{there.point}/models"\nmount_point = "{there.point}"\n{more}'
    )
    world.config.write_text(text)


@pytest.fixture
def held(world: World) -> World:
    """The model is in the store."""
    assert download(world.site()).exit_code == 0
    return world


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, for the next commit."""
    path = tmp_path_factory.mktemp("second") / "w2.pt"
    write_torch_zip(path, {f"model.diffusion_model.l{n}.weight": ("float32", (256, 512), 100 + n) for n in range(4)}, under="state_dict")
    return path


def next_commit(world: World, hub: LoopbackHub, files: dict[str, bytes | Path | None]) -> str:
    """The Hub gets a new commit and the store takes it over; returns the commit."""
    commit = hub.add_revision(REPO, files)
    lock = world.config.with_suffix(".lock")
    lock.unlink()
    assert download(world.site()).exit_code == 0
    return commit


__all__ = ["FILE", "held", "next_commit", "on_drive", "plug", "second"]
