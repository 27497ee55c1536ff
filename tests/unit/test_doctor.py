"""doctor: each thing that can be wrong with a machine's set-up is named, with its fix, and none keeps it from looking at the rest."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from steelyard import fstab
from steelyard.config import Config
from steelyard.doctor.environment import pins
from steelyard.doctor.hub import hub
from steelyard.doctor.places import places, readable
from steelyard.doctor.server import prefect
from steelyard.download import download
from steelyard.report import Row
from tests.conftest import World

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def found(rows: Iterator[Row]) -> dict[str, dict[str, Any]]:
    return {row.facts["check"]: {**row.facts, "exit_code": row.exit_code} for row in rows}


def doctor(world: World, *arguments: str, **more: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-m", "steelyard", "doctor", "--json", *arguments],
        cwd=world.home,
        env=world.environment | {"XDG_STATE_HOME": str(world.home / "state")},
        capture_output=True,
        text=True,
        timeout=90,
        **more,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, {row["check"]: row for row in json.loads(done.stdout)["results"]}


@contextmanager
def answering(answers: dict[str, Any], date: datetime | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback that answers each path that *answers* has as JSON, POST or GET; its address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
            asked.append(self.path)
            found = answers.get(self.path)
            content = json.dumps(found(body) if callable(found) else found).encode()
            self.send_response_only(200 if self.path in answers else 404)
            self.send_header("Date", format_datetime(date or datetime.now(UTC)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


# --- this machine


def test_a_store_that_this_user_may_not_enter_is_a_finding_and_the_rest_is_looked_at(world: World) -> None:
    world.configure()
    shut = world.home / "shut"
    world.config.write_text(world.config.read_text().replace(str(world.models), str(shut / "models")))
    shut.mkdir(mode=0o000)

    def as_a_user() -> None:  # root reads everything
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)

    code, rows = doctor(world, preexec_fn=as_a_user)
    shut.chmod(0o755)
    assert code == 1
    assert rows["store.models"]["verdict"] == "failed"
    assert (str(shut) in rows["store.models"]["why"], "let this user" in rows["store.models"]["fix"]) == (True, True)
    assert rows["store.hf_home"]["verdict"] == rows["hub"]["verdict"] == "ok"


def test_a_config_that_can_not_be_read_is_exit_code_two_as_everywhere(world: World) -> None:
    world.configure()
    world.config.write_text(world.config.read_text().replace("mount_point", "mountpoint"))
    code, rows = doctor(world)
    assert code == 2
    assert "replicas.usb.mountpoint" in rows["config"]["why"]


def test_a_store_on_a_drive_that_is_not_mounted_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the drive is absent its mount point is a plain folder of the root disk, and can be written."""
    world.configure()
    table = world.home / "fstab"
    table.write_text(f"UUID=1 / ext4 defaults 0 1\nUUID=2 {world.home} ext4 noauto 0 2\n")
    monkeypatch.setattr(fstab, "FSTAB", table)
    rows = found(places(world.site().config))
    assert rows["store.models"]["verdict"] == "failed"
    assert rows["store.models"]["fix"] == f"run: mount {world.home}"


def test_a_file_where_a_folder_should_be_is_told(world: World) -> None:
    world.configure()
    world.models.write_text("no folder")
    row = found(places(world.site().config))["store.models"]
    assert (row["verdict"], row["why"]) == ("failed", f"{world.models} is no folder")


def test_weights_that_this_user_may_not_read_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download(world.site()).ok
    assert found(readable(world.site()))["files"]["verdict"] == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != world.weights)
    row = found(readable(world.site()))["files"]
    assert (row["verdict"], row["exit_code"]) == ("failed", 1)
    assert str(world.weights) in row["why"] and "chmod u+r" in row["fix"]


def test_a_version_that_breaks_the_others_without_a_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0" if name == "sqlalchemy" else real(name))
    rows = found(pins())
    assert rows["pin sqlalchemy"]["verdict"] == "failed"
    assert "<2.1" in rows["pin sqlalchemy"]["fix"]
    assert rows["pin prefect"]["verdict"] == "ok"


# --- the Hub


@pytest.mark.parametrize(
    ("off", "verdict"), [(timedelta(minutes=4), "ok"), (timedelta(hours=-1), "failed"), (timedelta(hours=1), "failed")]
)
def test_a_clock_that_is_off_is_told(world: World, off: timedelta, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    world.configure()
    path = "/api/models/MVDream/MVDream/revision/main"
    with answering({path: {}}, datetime.now(UTC) + off) as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        row = found(hub(config_of(world)))["clock"]
    assert row["verdict"] == verdict
    assert ("timedatectl" in row["fix"]) == (verdict == "failed")


def config_of(world: World) -> Config:
    return world.site().config


# --- Prefect's server

LATER = {"id": "r", "name": "later"}


def healthy() -> dict[str, Any]:
    """What a Prefect server says that is as `steelyard up` leaves it."""
    deployment = {"id": "d", "name": "nightly", "paused": False, "schedules": [{"active": True}]}

    def runs(body: dict[str, Any]) -> list[dict[str, Any]]:
        return [LATER] if "after_" in body["flow_runs"].get("expected_start_time", {}) else []

    return {
        "/health": True,
        "/admin/version": "3.8.8",
        "/work_pools/filter": [{"name": "steelyard", "is_paused": False}],
        "/work_pools/steelyard/workers/filter": [{"name": "w", "status": "ONLINE"}],
        "/deployments/filter": [deployment],
        "/flow_runs/filter": runs,
        "/automations/filter": [{"name": "steelyard: a run that stopped beating has crashed", "enabled": True}],
    }


def asked_of(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    with answering(answers) as (url, _):
        monkeypatch.setenv("PREFECT_API_URL", url)
        return found(prefect())


def test_a_server_as_up_leaves_it_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row["verdict"] for row in asked_of(healthy(), monkeypatch).values()} == {"ok"}


@pytest.mark.parametrize(
    ("check", "path", "answer", "why", "fix"),
    [
        ("worker", "/work_pools/steelyard/workers/filter", [{"name": "w", "status": "OFFLINE"}], "no worker polls", "steelyard up"),
        ("worker", "/work_pools/filter", [{"name": "steelyard", "is_paused": True}], "paused", "prefect work-pool resume steelyard"),
        ("worker", "/work_pools/filter", [], "no work pool", "steelyard up"),
        ("schedules", "/flow_runs/filter", [], "no run to come", "sqlalchemy"),
        ("schedules", "/deployments/filter", [], "no deployment", "steelyard up"),
        ("automations", "/automations/filter", [], "machine that died", "deployments.apply"),
    ],
)
def test_what_is_wrong_with_the_server_is_named_with_its_fix(
    check: str, path: str, answer: object, why: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = asked_of(healthy() | {path: answer}, monkeypatch)[check]
    assert (row["verdict"], row["exit_code"]) == ("failed", 1)
    assert why in row["why"] and fix in row["fix"]


@pytest.mark.parametrize(
    ("state", "at_work", "verdict"),
    [("AwaitingConcurrencySlot", ["d"], "ok"), ("AwaitingConcurrencySlot", [], "failed"), ("Late", ["d"], "failed")],
)
def test_a_run_behind_one_that_is_at_work_is_not_late(
    state: str, at_work: list[str], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(body: dict[str, Any]) -> list[dict[str, Any]]:
        when = body["flow_runs"].get("expected_start_time", {})
        if "before_" in when:
            return [{"name": "waits", "state_name": state, "deployment_id": "d"}]
        return [LATER] if "after_" in when else [{"deployment_id": one} for one in at_work]

    assert asked_of(healthy() | {"/flow_runs/filter": runs}, monkeypatch)["late runs"]["verdict"] == verdict
