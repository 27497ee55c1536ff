from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard import steps
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, REPO, WEIGHTS, make_site


def alone(patched: pytest.MonkeyPatch) -> None:
    """No settings or logins of this machine, and a step is tried once: what is tested here is what a step endures by itself."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "PREFECT_API_URL", "STEELYARD_CONFIG"):
        patched.delenv(name, raising=False)
    patched.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    patched.setattr(steps, "TRIES", 1)
    patched.setattr(steps, "FIRST_WAIT_S", 0.05)


def memory_disk() -> Path | None:
    """A disk in memory where the machine has room for one: most tests make hundreds of small, fsynced files, and few are about a disk."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30 else None


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_revision(REPO, {FILE: WEIGHTS, "README.md": b"# A model\n", "configs/a.json": b"{}"})
        yield hub


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_disk() or tmp_path, prefix="steelyard-test-") as folder:
        yield Path(folder)


@pytest.fixture
def site(tmp_path: Path, hub: LoopbackHub) -> Site:
    return make_site(tmp_path, hub)
