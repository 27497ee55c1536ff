"""A small world for the tests: a real Hub protocol on the loopback, a store, a hub cache and a replica in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weights import write_torch_zip

REPO = "MVDream/MVDream"
FILE = "sd-v2.1-base-4view.pt"


@dataclass
class Done:
    """What a command printed and how it ended."""

    code: int
    json: dict[str, Any]
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.json["results"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return self.json["errors"]

    def of(self, file: str, **facts: Any) -> dict[str, Any]:
        """The one row of *file* that has *facts*."""
        found = [row for row in self.rows if row.get("file") == file and all(row.get(key) == value for key, value in facts.items())]
        assert len(found) == 1, found
        return found[0]


def clean_environment() -> dict[str, str]:
    """Nothing of the tester's own Hub, Prefect or Steelyard."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_", "PREFECT_", "STEELYARD_", "AWS_"))
    }


@dataclass
class World:
    """One machine: config in *home*, everything else below it."""

    home: Path
    hub: LoopbackHub
    environment: dict[str, str] = field(default_factory=clean_environment)

    def configure(self, more: str = "", *, files: str = f'["{FILE}"]', min_free: str = "1 MB", hub: str = "", views: str = "copy") -> None:
        text = f'''
[store]
models = "{self.models}"
hf_home = "{self.home}/hf"
min_free = "{min_free}"
views = "{views}"
[hub]
endpoint = "{self.hub.endpoint}"
timeout = 3
patience = 4
{hub}
[models.mvdream]
repo_id = "{REPO}"
files = {files}
dir = "."
[replicas.usb]
kind = "mount"
path = "{self.usb}"
mount_point = false
{more}'''
        self.config.write_text(text)

    @property
    def config(self) -> Path:
        return self.home / "steelyard.toml"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def usb(self) -> Path:
        return self.home / "usb"

    @property
    def weights(self) -> Path:
        return self.models / FILE

    def site(self) -> Site:
        return Site.open(self.config)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "steelyard", *arguments],
            cwd=self.home,
            env={"XDG_STATE_HOME": str(self.home / "state"), **self.environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            **options,
        )

    def run(self, *arguments: str, timeout: float = 120) -> Done:
        """The real command in a process of its own, with --json; no traceback, whatever happens."""
        process = self.start(*arguments, "--json")
        stdout, stderr = process.communicate(timeout=timeout)
        assert "Traceback" not in stderr, stderr
        return Done(process.returncode, json.loads(stdout), stdout, stderr)

    def flip(self, path: Path, offset: int, bits: int = 1) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ bits]))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genuine torch zip of some 21 MB: three pieces."""
    path = tmp_path_factory.mktemp("checkpoint") / "w.pt"
    return (
        write_torch_zip(path, {f"model.diffusion_model.l{n}.weight": ("float32", (512, 1024), n) for n in range(10)}, under="state_dict")
        or path
    )


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def world(tmp_path: Path, hub: LoopbackHub, checkpoint: Path) -> World:
    hub.add_revision(REPO, {FILE: checkpoint, "README.md": b"---\nlicense: openrail\n---\n# MVDream\n"})
    world = World(tmp_path, hub)
    world.configure()
    return world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: a file's tests stay together, and those that share the one Prefect server share a worker."""
    for item in items:
        shares = "prefect_up" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("prefect_up" if shares else item.nodeid.partition("::")[0]))
