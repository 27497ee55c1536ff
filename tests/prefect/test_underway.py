"""Runs that are under way when `up` begins or ends: none stays down as running, none keeps its slot, and none that goes on is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from deployments import underway
from deployments.underway import alive, cancel, settle
from steelyard import orchestrator

OURS = {"name": "steelyard-here", "status": "ONLINE"}


class Server:
    """What a Prefect server holds of one pool; a cancel that is asked for is done at the next look."""

    def __init__(self, runs: dict[str, str], workers: list[dict[str, str]]) -> None:
        self.runs, self.workers = runs, workers
        self.asked: list[tuple[str, str]] = []

    def ask(self, url: str, path: str, body: Any = None, **_: object) -> Any:
        if path.endswith("/workers/filter"):
            return self.workers
        if path == "/flow_runs/filter":
            assert body["work_pools"] == {"name": {"any_": ["steelyard"]}}
            found = [{"id": one, "name": f"run {one}", "state_type": state} for one, state in self.runs.items()]
            self.runs = {one: "CANCELLED" if state == "CANCELLING" else state for one, state in self.runs.items()}
            return [one for one in found if one["state_type"] in body["flow_runs"]["state"]["type"]["any_"]]
        ident = path.split("/")[2]
        self.asked.append((ident, body["state"]["type"]))
        self.runs[ident] = body["state"]["type"]
        return {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server({"gone": "RUNNING", "works": "RUNNING", "untaken": "PENDING", "told": "CANCELLING", "done": "COMPLETED"}, [OURS])
    monkeypatch.setattr(orchestrator, "ask", found.ask)
    monkeypatch.setattr(underway, "alive", lambda: {"works"})
    yield found


def test_what_no_process_works_on_is_ended_and_what_never_began_is_offered_again(server: Server) -> None:
    assert settle("u", "steelyard", "steelyard-here") == ["run gone", "run untaken", "run told"]
    assert server.asked == [("gone", "CRASHED"), ("untaken", "SCHEDULED"), ("told", "CANCELLED")]
    assert server.runs["works"] == "RUNNING", "its `up` was killed, and it goes on"


def test_runs_of_a_worker_elsewhere_are_left_alone(server: Server) -> None:
    server.workers.append({"name": "steelyard-there", "status": "ONLINE"})
    assert settle("u", "steelyard", "steelyard-here") == server.asked == []


def test_what_is_at_work_is_cancelled_once_and_waited_for(server: Server) -> None:
    cancel("u", "steelyard", 5)
    assert server.asked == [("works", "CANCELLING")]
    assert server.runs["works"] == "CANCELLED"


def test_a_run_that_does_not_end_is_waited_for_no_longer_than_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator, "ask", lambda url, path, body=None, **_: [{"id": "works", "state_type": "CANCELLING"}])
    cancel("u", "steelyard", 0.1)


def test_a_run_is_alive_while_a_process_has_its_mark() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], env={**os.environ, "PREFECT__FLOW_RUN_ID": "mine"}, stdin=subprocess.PIPE)
    try:
        assert "mine" in alive()
    finally:
        process.kill()
        process.wait()
    assert "mine" not in alive()
