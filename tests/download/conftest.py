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


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings or logins of this machine, and a step is tried once: what is tested here is what a step endures by itself."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "PREFECT_API_URL", "STEELYARD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(steps, "TRIES", 1)
    monkeypatch.setattr(steps, "FIRST_WAIT_S", 0.05)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_revision(REPO, {FILE: WEIGHTS, "README.md": b"# A model\n", "configs/a.json": b"{}"})
        yield hub


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the machine has room for that: most of these tests make hundreds of small, fsynced files, and none is about a disk's speed."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="steelyard-test-") as folder:
        yield Path(folder)


@pytest.fixture
def site(tmp_path: Path, hub: LoopbackHub) -> Site:
    return make_site(tmp_path, hub)
