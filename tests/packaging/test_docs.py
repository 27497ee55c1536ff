"""What the documents promise exists: commands, exit codes, config keys, tasks, files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from steelyard.commands import EXIT_CODES
from steelyard.config import load_config
from steelyard.init import STARTER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"`steelyard ([a-z][a-z-]+)", README)) - {"verb"})


def steelyard(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "steelyard", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_readme_names_the_verbs() -> None:
    assert {"download", "verify", "load", "backup", "restore", "repair", "check-updates", "status", "inspect", "init"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_readme_has_help_that_ends_in_the_exit_codes(command: str) -> None:
    done = steelyard(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert "--config" in done.stdout
    assert " ".join(done.stdout.split()).endswith(" ".join(EXIT_CODES.split()))


def test_each_command_is_in_the_readme() -> None:
    told = steelyard("--help").stdout
    there = set(re.findall(r"^│ ([a-z][a-z-]*)  ", told, re.MULTILINE))
    assert there
    there -= {"--version", "--help"}
    assert there <= set(COMMANDS), there - set(COMMANDS)


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
def test_the_readmes_config_opens(tmp_path: Path, block: str) -> None:
    path = tmp_path / "steelyard.toml"
    path.write_text(block)
    assert "mvdream" in load_config(path).models


def test_the_starter_config_of_the_repo_is_what_init_writes() -> None:
    assert (ROOT / "steelyard.toml").read_text() == STARTER


def test_the_users_own_task_names_run_our_commands() -> None:
    tasks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poe"]["tasks"]
    assert tasks == {
        "download-models": "steelyard download",
        "verify-models": "steelyard verify",
        "test-model-loading": "steelyard load",
        "backup-models": "steelyard backup",
        "check-updates": "steelyard check-updates",
    }
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "poethepoet", "test-model-loading", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "--device" in done.stdout


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "DESIGN.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_pins_that_must_hold_are_in_both_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"fastapi<0.151", "sqlalchemy>=2.0,<2.1"} <= set(project)
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and not line.startswith("#")
    )
    assert pinned["torch"] == "2.13.0"
    assert pinned["fastapi"].startswith("0.150")
    assert pinned["SQLAlchemy"].startswith("2.0")


def test_no_file_names_a_place_of_this_machine_or_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    words = ("/" + "root/", "/" + "work/", "pypi" + ".org", "file" + "pythonhosted")
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".service", ""}:
            text = path.read_text(errors="replace")
            assert not any(word in text for word in words), name


def test_the_targets_that_users_rely_on_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"setup", "demo", "test", "up", "bench", "lint", "torture"} <= targets
