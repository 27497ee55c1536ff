"""A cancel from the UI stops the run within ten seconds wherever it is, and the next run goes on from there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import FILE
from tests.prefect.conftest import Api, PrefectWorld, Up, until

WITHIN_S = 10.0


def cancelled(api: Api, ident: str) -> float:
    """Cancel the run, and return how long it took [seconds]."""
    began = time.monotonic()
    api.cancel(ident)
    run = api.until_ended(ident, 40)
    seconds = time.monotonic() - began
    assert run["state_type"] == "CANCELLED", run["state"]
    return seconds


def task_runs(api: Api, ident: str, name: str) -> bool:
    return any(task["name"].startswith(name) and task["state_name"] == "Running" for task in api.tasks(ident))


def test_a_cancelled_download_is_resumed(api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 1_500_000
    ident = api.start("download-models/on-demand", config=str(world.config))
    until(lambda: world.hub.bytes_sent("cdn") > 4_000_000, 60, "some of the download")
    assert cancelled(api, ident) < WITHIN_S
    assert not world.weights.exists(), "nothing half-way stands under the final name"
    said = [state["message"] for state in api.ask(f"/flow_run_states/?flow_run_id={ident}") if state["type"] == "CANCELLED"]
    assert "the next run goes on from here" in str(said[0]), "by the run itself, and not only once its worker has seen it end"
    sent = world.hub.bytes_sent("cdn")
    time.sleep(1)
    assert world.hub.bytes_sent("cdn") - sent < 1_000_000, "the process is gone"
    world.hub.rate_limit_bytes_per_s = None
    done = world.run("download", "--here")
    assert done.code == 0
    row = done.of(FILE)
    assert row["action"] == "resumed"
    assert row["bytes_fetched"] < row["size_bytes"] - 2_000_000


def test_a_run_that_waits_out_bad_weather_is_cancelled(api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    world.config.write_text(world.config.read_text().replace("patience = 4", "patience = 300"))
    world.run("download", "--here")
    world.weights.unlink()
    for copy in (world.home / "hf").rglob("blobs/*"):
        copy.unlink()
    world.hub.faults.add("cdn", "503", headers={"Retry-After": "40"})
    ident = api.start("download-models/on-demand", config=str(world.config))
    until(lambda: task_runs(api, ident, "fetch"), 60, "the fetch to begin")
    time.sleep(2)
    assert cancelled(api, ident) < WITHIN_S


def test_a_killed_run_is_crashed_and_its_lock_is_free(api: Api, prefect_world: PrefectWorld) -> None:
    """SIGKILL of the run's process: the worker notices, and the next run goes on."""
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 1_500_000
    ident = api.start("download-models/on-demand", config=str(world.config))
    until(lambda: world.hub.bytes_sent("cdn") > 3_000_000, 60, "some of the download")
    os.kill(process_of(ident), signal.SIGKILL)
    run = api.until_ended(ident, 20)
    assert run["state_type"] == "CRASHED"
    world.hub.rate_limit_bytes_per_s = None
    assert world.run("download", "--here").code == 0, "the lock died with its process"


def process_of(ident: str) -> int:
    """The engine process of a run, by its environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"PREFECT__FLOW_RUN_ID={ident}".encode() in environment and b"prefect" in command:
                found = int(entry.name)
                if b"worker" not in command:
                    return found
    raise AssertionError("the run has no process")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_by_hand_is_stopped_by_a_signal(api: Api, prefect_world: PrefectWorld, number: signal.Signals, prefect_up: Up) -> None:
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 1_500_000
    process = world.start("download")
    until(lambda: world.hub.bytes_sent("cdn") > 3_000_000, 60, "some of the download")
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < WITHIN_S
    assert process.returncode == 130, errors
    assert api.latest("download-models")["state_type"] in {"CANCELLED", "CRASHED"}
