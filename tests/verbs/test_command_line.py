"""The command line itself: where options may stand, and what becomes of the answer where nobody can take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import World


def steelyard(world: World, *arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "steelyard", *arguments],
        cwd=world.home,
        env={**world.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def test_what_every_command_takes_may_stand_before_it_too(world: World) -> None:
    world.config.rename(world.home / "other.toml")
    for arguments in (
        ["--json", "--config", "other.toml", "verify"],
        ["--config=other.toml", "--json", "--here", "verify", "mvdream"],
        ["--config", "other.toml", "verify", "--json=true"],
    ):
        done = steelyard(world, *arguments)
        assert done.returncode == 1, arguments
        assert json.loads(done.stdout)["command"] == "verify"
        assert json.loads(done.stdout)["results"][0]["verdict"] == "missing"


@pytest.mark.parametrize(
    "arguments, command",
    [(["--json"], ""), (["--json", "--config"], ""), (["--json", "nosuch", "verify"], ""), (["--json", "verify", "--nope"], "verify")],
)
def test_wrong_usage_with_json_in_front_is_one_document(world: World, arguments: list[str], command: str) -> None:
    done = steelyard(world, *arguments)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"], document["command"]) == (2, 2, command)
    assert document["errors"][0]["hint"]


def test_a_name_that_is_no_unicode_and_a_terminal_of_ascii_get_their_answer(world: World) -> None:
    name = os.fsdecode(b"w\xff.pt")
    (world.home / name).write_text("a placeholder")
    document = json.loads(steelyard(world, "inspect", name, "--json", LC_ALL="C.UTF-8").stdout.decode())
    assert document["results"][0]["path"].endswith(name)
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    document = json.loads(steelyard(world, "inspect", name, "--json", **ascii_only).stdout.decode("ascii"))
    assert document["results"][0]["verdict"] == "broken"
    assert b"broken" in steelyard(world, "inspect", name, **ascii_only).stdout


def test_an_output_that_nobody_takes_changes_nothing_of_the_command(world: World) -> None:
    for more in ([], ["--json"]):
        assert steelyard(world, "status", *more).returncode == 0
        read, write = os.pipe()
        os.close(read)
        assert steelyard(world, "status", *more, stdout=write).returncode == 0
        os.close(write)
        with Path("/dev/full").open("wb") as full:
            done = steelyard(world, "status", *more, stdout=full.fileno())
        assert done.returncode == 1
        assert b"can't be written to stdout" in done.stderr
        closed = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m steelyard status {' '.join(more)} <&- >&- 2>&-"], cwd=world.home, env=world.environment
        )
        assert closed.returncode == 0
