"""What a run shows: tasks and tags, few and readable log lines, artifacts under fixed keys, and an end that says why."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from tests.conftest import FILE
from tests.prefect.conftest import Api, PrefectWorld, until


def test_a_run_shows_its_tasks_its_log_and_its_artifacts(api: Api, held: PrefectWorld) -> None:
    assert held.run("backup").code == 0
    run = api.latest("backup-models")
    assert set(run["tags"]) == {"steelyard", "backup", "mvdream"}
    tasks = {task["name"]: set(task["tags"]) for task in api.tasks(run["id"])}
    assert set(tasks) == {"look at mvdream in usb", f"copy mvdream → usb · {FILE}", "seal mvdream in usb"}
    assert tasks[f"copy mvdream → usb · {FILE}"] == {"backup", "mvdream", "usb"}

    lines = until(lambda: found if "Finished" in str(found := api.logs(run["id"])) else None, 20, "the log")
    assert len(lines) < 200
    of_task = {line["message"]: bool(line["task_run_id"]) for line in lines}
    assert of_task[f"mvdream · {FILE} → usb: copied"], "it stands with its task"
    assert not any("Finished in state Completed" in line["message"] and line["task_run_id"] for line in lines)

    found = api.artifacts(run["id"])
    assert set(found) == {"backup-models", "backup-models-report", "held-models"}
    assert (found["backup-models"]["type"], found["held-models"]["type"]) == ("table", "markdown")
    assert f'"file": "{FILE}", "copy": "usb", "result": "copied"' in found["backup-models"]["data"]
    assert "✓ ok, " in found["held-models"]["data"]


def test_corrupt_data_ends_the_run_failed_and_is_an_event(api: Api, held: PrefectWorld) -> None:
    held.flip(held.weights, 9_000_000)
    done = held.run("verify")
    assert done.code == 1
    assert done.of(FILE)["bad_ranges"] == [[8_388_608, 16_777_216]]
    run = api.latest("verify-models")
    assert run["state_name"] == "Failed"
    assert "1 corrupt" in run["state"]["message"]
    assert f"{FILE} in store is corrupt" in run["state"]["message"]
    assert "\n" not in run["state"]["message"]
    tasks = api.tasks(run["id"])
    assert [(task["state_name"], task["run_count"]) for task in tasks] == [("Completed", 1)], "corruption is a finding, and not retried"
    query = {"filter": {"event": {"name": ["steelyard.verify.failed"]}}, "limit": 5}
    events = until(lambda: api.ask("/events/filter", query)["events"], 20, "the event")
    assert events[0]["resource"]["prefect.resource.id"] == "steelyard.model.mvdream"


def test_weather_is_retried_and_the_run_succeeds(api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    # The Hub's client asks four times by itself; the fifth to seventh answers are the task's second try.
    fault = world.hub.faults.add("api", "503", times=6)
    done = world.run("download")
    assert done.code == 0
    assert fault.used == 6
    tasks = {task["name"]: task for task in api.tasks(api.latest("download-models")["id"])}
    assert (tasks["agree on mvdream"]["state_name"], tasks["agree on mvdream"]["run_count"]) == ("Completed", 2)


def test_denied_access_is_not_retried(api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    world.hub.repo("MVDream/MVDream").private = True
    done = world.run("download")
    assert done.code == 4
    run = api.latest("download-models")
    assert [task["run_count"] for task in api.tasks(run["id"])] == [1]
    assert run["state_name"] == "Failed"
    lines = [line["message"] for line in api.logs(run["id"])]
    assert not any("Traceback" in line for line in lines), lines


def test_progress_moves_while_the_work_goes_on(api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 3_500_000
    seen: set[float] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            found = api.ask(
                "/artifacts/filter",
                {"artifacts": {"key": {"any_": ["progress-download-sd-v2-1-base-4view-pt"]}}, "sort": "CREATED_DESC", "limit": 1},
            )
            if found and found[0]["created"] > began:
                seen.add(float(found[0]["data"]))

    began = datetime.now(UTC).isoformat()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert world.run("download").code == 0
    finally:
        done.set()
        thread.join()
    assert len(seen) >= 2, seen
    last = api.artifacts(api.latest("download-models")["id"])["progress-download-sd-v2-1-base-4view-pt"]
    assert float(last["data"]) == 100.0


def test_the_nightly_round_mends_where_it_may_and_backs_up(api: Api, held: PrefectWorld) -> None:
    held.flip(held.weights, 100)
    report = held.module("keep_models")
    assert report.code == 1, "by default it only says what is bad"
    assert report.errors[0]["code"] == "source-corrupt", "and what has rotted is not carried to a replica"
    mended = held.module("keep_models", "--repair", "auto")
    assert mended.code == 0
    outcomes = [(row["verb"], row.get("copy"), row.get("verdict") or row.get("action")) for row in mended.rows]
    assert ("repair", "store", "repaired") in outcomes
    assert outcomes[-2][:2] == ("backup", "usb") and outcomes[-2][2] in {"copied", "resumed"}
    assert ("check-updates", "hub", "unchanged") in outcomes
    run = api.latest("keep-models")
    assert (run["name"], run["state_name"]) == ("keep · all models", "Completed")
    assert "keep-models" in api.artifacts(run["id"])
