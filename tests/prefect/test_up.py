"""steelyard up: one at a time, guarded, applied as often as you like, and gone when it is told to go."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.children import Child
from deployments.up import is_loopback, surroundings
from steelyard import orchestrator
from tests.prefect.conftest import ROOT, Api, PrefectWorld, Up, until


def up(environment: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "steelyard", "up", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_a_second_up_says_that_one_runs(prefect_up: Up) -> None:
    code, said = up(prefect_up.environment)
    assert code == 3
    assert said["errors"][0]["code"] == "locked"
    assert prefect_up.api.url.removesuffix("/api") in said["errors"][0]["message"]
    assert str(prefect_up.process.pid) in said["errors"][0]["message"]


def test_an_address_that_others_reach_needs_a_password(tmp_path: Path, prefect_up: Up) -> None:
    environment = {
        **prefect_up.environment,
        "XDG_STATE_HOME": str(tmp_path),
        "STEELYARD_CONFIG": prefect_up.announced["results"][0]["path"],
    }
    code, said = up(environment, "--host", "0.0.0.0")
    assert code == 3
    assert "PREFECT_SERVER_API_AUTH_STRING" in said["errors"][0]["hint"]


def test_a_port_that_is_taken_is_refused(tmp_path: Path, prefect_up: Up) -> None:
    environment = {
        **prefect_up.environment,
        "XDG_STATE_HOME": str(tmp_path),
        "STEELYARD_CONFIG": prefect_up.announced["results"][0]["path"],
    }
    port = prefect_up.api.url.rpartition(":")[2].partition("/")[0]
    code, said = up(environment, "--port", port)
    assert (code, said["errors"][0]["code"]) == (3, "refused")


@pytest.mark.parametrize("port", ["0", "99999", "-1", "4200x", ""])
def test_what_is_no_port_is_wrong_use(tmp_path: Path, port: str) -> None:
    """By option and by environment; and with --json, as everywhere, it is a document."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "STEELYARD_CONFIG": str(tmp_path / "absent.toml")}
    code, said = up_itself(environment, f"--port={port}")
    assert (code, said["exit_code"], said["errors"][0]["code"]) == (2, 2, "usage")
    code, said = up_itself({**environment, "PREFECT_SERVER_API_PORT": port})
    assert (code, said["errors"][0]["code"]) == (2, "usage" if port else "config-missing")


def up_itself(environment: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """As the service starts it, without the command line's own look at the arguments."""
    command = [sys.executable, "-m", "deployments.up", *arguments, "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def test_up_needs_a_config(tmp_path: Path, prefect_up: Up) -> None:
    environment = {**prefect_up.environment, "XDG_STATE_HOME": str(tmp_path), "STEELYARD_CONFIG": str(tmp_path / "absent.toml")}
    code, said = up(environment)
    assert (code, said["errors"][0]["code"]) == (2, "config-missing")


@pytest.mark.parametrize(
    ("host", "ours"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("192.168.1.5", False), ("box", False)]
)
def test_only_the_loopback_is_the_loopback(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours


def test_what_up_sets_for_prefect() -> None:
    found = surroundings("0.0.0.0", 4300, Path("/c/steelyard.toml"), {"PREFECT_SERVER_API_AUTH_STRING": "a:b", "PREFECT_API_KEY": "k"})
    assert found["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert found["DO_NOT_TRACK"] == "1"
    assert found["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "true"
    assert found["PREFECT_API_AUTH_STRING"] == "a:b", "our own worker must get in"
    assert "PREFECT_API_KEY" not in found
    assert "PREFECT_HOME" not in found, "the user's own stays the user's own"


def test_everything_that_prefect_yaml_declares_is_there(api: Api) -> None:
    found = {f"{one['entrypoint']}": one for one in api.ask("/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}})}
    assert len(found) == (ROOT / "prefect.yaml").read_text().count("entrypoint: ")
    nightly = found["flows.keep_models.keep_models"]
    assert nightly["schedules"][0]["active"] is True
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert nightly["enforce_parameter_schema"] is True
    names = {one["name"] for one in api.ask("/automations/filter", {})}
    assert "steelyard: a run that stopped beating has crashed" in names


def test_the_status_page_is_served_beside_the_ui_with_what_comes_next(prefect_up: Up) -> None:
    import urllib.request

    url = prefect_up.announced["results"][0]["status_url"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url, timeout=90) as answer:
        text = answer.read().decode()
    assert "could be restored now" in text
    assert "keep-models (nightly)" in text and "disk-watch (watch)" in text


def test_the_zombie_automation_waits_for_three_heartbeats(api: Api) -> None:
    found = next(one for one in api.ask("/automations/filter", {}) if "stopped beating" in one["name"])
    assert found["trigger"]["posture"] == "Proactive"
    assert found["trigger"]["within"] == 540
    assert found["actions"][0]["state"] == "CRASHED"


def test_applying_again_changes_nothing_and_respects_what_was_switched_off(api: Api, prefect_up: Up) -> None:
    def automations() -> dict[str, tuple[str, bool]]:
        return {one["name"]: (one["id"], one["enabled"]) for one in api.ask("/automations/filter", {})}

    def deployments() -> dict[str, Any]:
        found = api.ask("/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}})
        return {one["id"]: [(s["id"], s["active"]) for s in one["schedules"]] for one in found}

    late = automations()["steelyard: a run is late"][0]
    patch(api, f"/automations/{late}", {"enabled": False})
    before = automations(), deployments()
    assert before[0]["steelyard: a run is late"] == (late, False)
    environment = {**prefect_up.environment, "PREFECT_API_URL": api.url, "STEELYARD_CONFIG": prefect_up.announced["results"][0]["path"]}
    done = subprocess.run(
        [sys.executable, "-m", "deployments.apply"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (automations(), deployments()) == before


def patch(api: Api, path: str, body: object) -> None:
    import urllib.request

    request = urllib.request.Request(f"{api.url}{path}", json.dumps(body).encode(), {"content-type": "application/json"}, method="PATCH")
    with urllib.request.urlopen(request, timeout=10):
        pass


def test_prefects_own_data_is_kept_for_ninety_days(api: Api, held: PrefectWorld, prefect_up: Up) -> None:
    """By default Prefect keeps every run for ever. One run is made to look old; it goes, and the younger one stays."""
    for _ in range(2):
        assert held.run("verify").code == 0
    young, old = (run["id"] for run in api.by_hand("verify-models")[:2])
    database = Path(prefect_up.environment["PREFECT_HOME"]) / "prefect.db"
    ended = (datetime.now(UTC) - timedelta(days=91)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as db:
        db.execute("update flow_run set end_time=? where id=?", (ended, old))
        db.commit()

    def gone() -> bool:
        return not api.ask("/flow_runs/count", {"flow_runs": {"id": {"any_": [old]}}})

    until(gone, 60, "the vacuum")
    assert api.run(young)["state_type"] == "COMPLETED"


def test_a_worker_that_dies_is_started_again(api: Api, prefect_up: Up) -> None:
    from steelyard.orchestrator import process_ticks

    worker = next(pid for pid in children(prefect_up.process.pid) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, 9)
    until(lambda: process_ticks(worker) is None, 10, "the worker to be reaped")
    until(
        lambda: any(b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(prefect_up.process.pid)), 20, "a new worker"
    )


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_child_and_what_it_started_are_gone_after_stop(tmp_path: Path) -> None:
    """Even where both refuse to go."""
    from steelyard.orchestrator import process_ticks

    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN)"
    script = (
        f"{deaf}; import subprocess, sys\n"
        f"other = subprocess.Popen([sys.executable, '-c', '{deaf}; time.sleep(99)'], start_new_session=True)\n"
        "print(other.pid, flush=True); time.sleep(99)"
    )
    child = Child("stubborn", [sys.executable, "-c", script], dict(os.environ), tmp_path / "log")
    child.start()
    grandchild = int(until(lambda: (tmp_path / "log").read_text().strip(), 10, "the grandchild"))
    child.stop(0.5)
    assert process_ticks(child.pid) is None
    assert process_ticks(grandchild) is None


def test_doctor_finds_all_well_and_names_what_is_not(prefect_up: Up) -> None:
    environment = {**prefect_up.environment, "STEELYARD_CONFIG": prefect_up.announced["results"][0]["path"]}

    def doctor(**more: str) -> tuple[int, dict[str, dict[str, Any]]]:
        done = subprocess.run(
            [sys.executable, "-m", "steelyard", "doctor", "--json"], env={**environment, **more}, capture_output=True, text=True, timeout=90
        )
        return done.returncode, {row["check"]: row for row in json.loads(done.stdout)["results"]}

    def all_well() -> object:
        _, rows = doctor()
        return (
            rows
            if {rows[one]["verdict"] for one in ("prefect server", "worker", "schedules", "automations")} <= {"ok", "unknown"}
            else None
        )

    rows = until(all_well, 60, "doctor to find Prefect well")
    assert rows["schedules"]["why"].startswith("6 schedules are on")
    assert rows["pin sqlalchemy"]["verdict"] == "ok"
    code, rows = doctor(PREFECT_API_URL="http://127.0.0.1:9/api", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 1
    assert rows["prefect server"]["verdict"] == rows["hub"]["verdict"] == "failed"
    assert "steelyard up" in rows["prefect server"]["fix"]


def test_a_run_outlives_a_server_that_is_killed(api: Api, prefect_world: PrefectWorld, prefect_up: Up) -> None:
    """The server comes back by itself; the run by hand goes on meanwhile, and its end and its log are there."""
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 2_000_000
    process = world.start("download", "--json")
    until(lambda: world.hub.bytes_sent("cdn") > 2_000_000, 60, "some of the download")
    server = next(pid for pid in children(prefect_up.process.pid) if b"server" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(server, 9)
    output, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert json.loads(output)["results"][0]["action"] == "downloaded"
    until(lambda: orchestrator.answers(api.url), 90, "the server to be back")
    run = until(lambda: found if (found := api.latest("download-models"))["state_type"] == "COMPLETED" else None, 60, "the run's end")
    told = until(lambda: found if "1 downloaded" in str(found := api.logs(run["id"])) else None, 30, "the log")
    assert len(told) < 200
