"""`steelyard up` where only the wheel is installed: no checkout, another folder, a user's own config."""

from __future__ import annotations

import signal
import site
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.orchestrator import process_ticks
from steelyard.standins.hub import LoopbackHub
from tests.conftest import FILE, REPO, World
from tests.packaging.test_wheel import wheel
from tests.prefect.conftest import Api, free_port, read_json, surroundings
from tests.prefect.test_up import children

__all__ = ["wheel"]


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The program `steelyard` of an environment that has the wheel, and the libraries of this one."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "zz-libraries.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return home / "bin" / "steelyard"


@pytest.mark.prefect
def test_up_starts_applies_works_and_ends(installed: Path, tmp_path: Path, hub: LoopbackHub, checkpoint: Path) -> None:
    hub.add_revision(REPO, {FILE: checkpoint})
    environment = {name: value for name, value in surroundings(tmp_path).items() if name != "PYTHONPATH"}
    world = World(tmp_path, hub, environment)
    world.configure()
    look = [str(installed.with_name("python")), "-c", "import deployments, steelyard; print(deployments.__file__, steelyard.__file__)"]
    where = subprocess.run(look, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30).stdout
    assert where.count(str(tmp_path / "venv")) == 2, where
    out = tmp_path / "up.out"
    with out.open("w") as stdout, (tmp_path / "up.err").open("w") as stderr:
        process = subprocess.Popen(
            [str(installed), "up", "--port", str(free_port()), "--json"],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    started: list[int] = []
    try:
        announced = read_json(process, out)  # type: ignore[arg-type]
        started = children(process.pid)
        api = Api(announced["results"][0]["api_url"])
        assert announced["results"][0]["path"] == str(world.config)
        found = {one["entrypoint"] for one in api.ask("/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}})}
        assert {"flows.keep_models.keep_models", "flows.download.download_models"} <= found
        run = api.until_ended(api.start("download-models/on-demand"), 60)
        assert run["state_type"] == "COMPLETED", run["state"]
        assert world.weights.stat().st_size == checkpoint.stat().st_size
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0, (tmp_path / "up.err").read_text()
    assert started and not any(process_ticks(pid) for pid in started), "nothing of it lives on"
