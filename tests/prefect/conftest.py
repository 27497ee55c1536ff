"""One real Prefect server for the whole folder, started as a user starts it: `steelyard up`, with a home of its own on the loopback."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steelyard import orchestrator
from steelyard.standins.hub import LoopbackHub
from tests.conftest import FILE, REPO, Done, World, clean_environment

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"prefect_up", "prefect_world", "api"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.prefect)


@dataclass
class Api:
    """The server's REST API, as the UI uses it."""

    url: str

    def ask(self, path: str, body: object = None) -> Any:
        return orchestrator.ask(self.url, path, body, timeout_s=30, patience_s=10)

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"/deployments/name/{name}")
        return found

    def start(self, deployment: str, **options: Any) -> str:
        """Create a run of *deployment* with parameters, as the UI's form does."""
        body = {"parameters": {"options": options}, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", body)["id"])

    def run(self, ident: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"/flow_runs/{ident}")
        return found

    def by_hand(self, flow: str) -> list[dict[str, Any]]:
        """Runs of *flow* that no deployment started, latest first."""
        runs = {"deployment_id": {"is_null_": True}}
        found: list[dict[str, Any]] = self.ask(
            "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "flow_runs": runs, "sort": "START_TIME_DESC", "limit": 200}
        )
        return found

    def latest(self, flow: str) -> dict[str, Any]:
        return self.by_hand(flow)[0]

    def tasks(self, ident: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [ident]}}})
        return found

    def logs(self, ident: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [ident]}}, "sort": "TIMESTAMP_ASC"})
        return found

    def artifacts(self, ident: str) -> dict[str, dict[str, Any]]:
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [ident]}}})
        return {one["key"]: one for one in found}

    def cancel(self, ident: str) -> None:
        """As the UI's button does."""
        self.ask(f"/flow_runs/{ident}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def until_ended(self, ident: str, within_s: float = 60) -> dict[str, Any]:
        return until(lambda: run if (run := self.run(ident))["state_type"] in FINAL else None, within_s, f"run {ident} to end")


def until(look: Callable[[], Any], within_s: float, what: str) -> Any:
    """What *look* gives once it gives something."""
    ends = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < ends, f"waited {within_s:.0f} s for {what}"
        time.sleep(0.2)
    return found


@dataclass
class Up:
    """A running `steelyard up`."""

    api: Api
    process: subprocess.Popen[str]
    environment: dict[str, str]
    announced: dict[str, Any]

    def log(self, name: str) -> str:
        return (Path(self.announced["results"][0]["logs"]) / f"{name}.log").read_text(encoding="utf-8", errors="replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def surroundings(home: Path) -> dict[str, str]:
    """The environment of a user who has nothing of Prefect or Steelyard yet."""
    environment = {key: value for key, value in clean_environment().items() if not key.startswith("XDG_")}
    environment |= {
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "XDG_STATE_HOME": str(home / "state"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "5",
        # A schedule made by the API is seen by the scheduler's next round: every minute, where nothing else is said.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
        "PYTHONPATH": str(ROOT),
    }
    return environment


@pytest.fixture(scope="session")
def prefect_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`steelyard up` with a config of its own, ended by SIGINT as by Ctrl-C; nothing of it may live afterwards."""
    home = tmp_path_factory.mktemp("up")
    with LoopbackHub() as hub:
        World(home, hub).configure()
        port = free_port()
        environment = surroundings(home)
        out, errors = (home / "up.out").open("w"), (home / "up.err").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "steelyard", "up", "--port", str(port), "--config", str(home / "steelyard.toml"), "--json"],
            cwd=home,
            env=environment,
            stdout=out,
            stderr=errors,
            text=True,
        )
        try:
            announced = read_json(process, home / "up.out")
            yield Up(Api(announced["results"][0]["api_url"]), process, environment, announced)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)
            out.close()
            errors.close()


def read_json(process: subprocess.Popen[str], out: Path, within_s: float = 240) -> dict[str, Any]:
    """The one JSON document that a program prints when it is ready, while it runs on."""

    def ready() -> Any:
        assert process.poll() is None, out.with_suffix(".err").read_text()
        try:
            return json.loads(out.read_text())
        except ValueError:
            return None

    found: dict[str, Any] = until(ready, within_s, "steelyard up")
    assert found["results"], found["errors"]
    return found


@pytest.fixture(scope="session")
def api(prefect_up: Up) -> Api:
    return prefect_up.api


@dataclass
class PrefectWorld(World):
    """A small world whose commands show in the server."""

    def module(self, name: str, *arguments: str, timeout: float = 120) -> Done:
        """`python -m flows.NAME … --json`"""
        done = subprocess.run(
            [sys.executable, "-m", f"flows.{name}", *arguments, "--json"],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, json.loads(done.stdout), done.stdout, done.stderr)


@pytest.fixture
def prefect_world(prefect_up: Up, tmp_path: Path, hub: LoopbackHub, checkpoint: Path) -> PrefectWorld:
    """Its own Hub, store and replica; its commands find the server by PREFECT_API_URL."""
    hub.add_revision(REPO, {FILE: checkpoint, "README.md": b"---\nlicense: openrail\n---\n# MVDream\n"})
    environment = {**surroundings(tmp_path), "PREFECT_API_URL": prefect_up.api.url, "PREFECT_HOME": prefect_up.environment["PREFECT_HOME"]}
    world = PrefectWorld(tmp_path, hub, environment)
    world.configure()
    return world


@pytest.fixture
def held(prefect_world: PrefectWorld) -> PrefectWorld:
    """The world with the model in its store, downloaded without Prefect."""
    assert prefect_world.run("download", "--here").code == 0
    return prefect_world
