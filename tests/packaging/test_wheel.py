"""The built wheel holds the whole house, and works from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("the build backend can't be had from the index")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("steelyard-*.whl"))


def test_the_wheel_holds_the_three_packages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"steelyard", "flows", "tasks"} <= tops
    assert not any(name.startswith(("tests/", "bench/")) for name in names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheels_program_starts_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into a folder of its own, so that nothing of the checkout helps; the libraries come from this environment."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); import steelyard; assert 'site' in steelyard.__file__; from steelyard.cli import main; main()"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STEELYARD_")}
    for arguments, code in ((["--help"], 0), (["verify", "--json"], 2), (["init", "x.toml"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "site"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
