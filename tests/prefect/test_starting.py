"""A verb starts in three ways: by its schedule, from the UI, and by hand; and by hand also where Prefect is away."""

from __future__ import annotations

import time
import urllib.error
from datetime import UTC, datetime

import pytest

from tests.conftest import FILE
from tests.prefect.conftest import Api, PrefectWorld, Up, until


def test_a_schedule_fires_and_the_worker_does_the_work(api: Api, held: PrefectWorld) -> None:
    deployment = api.deployment("check-updates/daily")
    began = datetime.now(UTC)
    # Not more often: what fires faster than one worker ends it keeps the server busy long after this test.
    made = api.ask(
        f"/deployments/{deployment['id']}/schedules",
        [
            {
                "schedule": {"interval": 20, "anchor_date": began.isoformat()},
                "active": True,
                "slug": "every-twenty-seconds",
                "parameters": {"options": {"config": str(held.config)}},
            }
        ],
    )
    try:

        def ended() -> list[dict[str, object]]:
            query = {
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}, "end_time": {"after_": began.isoformat()}},
            }
            found: list[dict[str, object]] = api.ask("/flow_runs/filter", query)
            return found

        # The scheduler's round, the interval, the worker's round and a cold start of the flow come one after the other.
        run = until(ended, 150, "a scheduled run to end")[-1]
    finally:
        delete(api, f"/deployments/{deployment['id']}/schedules/{made[0]['id']}")
    assert run["auto_scheduled"] is True
    assert (run["state_name"], run["name"]) == ("Completed", "check updates · all models")


def delete(api: Api, path: str) -> None:
    import urllib.request

    for wait_s in (0.5, 1, 2, 4, 8, 0):
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{api.url}{path}", method="DELETE"), timeout=30):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503 or not wait_s:
                raise
            time.sleep(wait_s)


def test_a_run_from_the_form_takes_its_parameters(api: Api, held: PrefectWorld) -> None:
    ident = api.start("backup-models/on-demand", config=str(held.config), models=["mvdream"], to="usb")
    run = api.until_ended(ident)
    assert (run["state_name"], run["name"]) == ("Completed", "backup · mvdream → usb")
    assert {"steelyard", "backup", "mvdream", "usb"} <= set(run["tags"])
    assert [path.name for path in held.usb.rglob(FILE)] == [FILE]


def test_the_watch_over_the_disks_runs_on_the_server(api: Api, held: PrefectWorld) -> None:
    ident = api.start("disk-watch/watch", config=str(held.config))
    run = api.until_ended(ident)
    assert run["state_name"] == "Completed", run["state"]
    assert {"steelyard", "disk-watch"} <= set(run["tags"])
    table = str(api.artifacts(ident)["disk-watch"]["data"])
    assert "free_bytes" in table and "io_errors" in table


def test_an_automation_starts_a_run_when_an_event_is_heard(api: Api, held: PrefectWorld) -> None:
    """Corruption that a verify by hand finds: the automation asks what repair would do."""
    deployment = api.deployment("repair-models/on-demand")
    made = api.ask(
        "/automations/",
        {
            "name": f"try repair {held.home.name}",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "expect": ["steelyard.verify.failed"],
                "match": {"prefect.resource.id": "steelyard.model.*"},
                "threshold": 1,
                "within": 0,
            },
            "actions": [
                {
                    "type": "run-deployment",
                    "source": "selected",
                    "deployment_id": deployment["id"],
                    "parameters": {"options": {"config": str(held.config), "dry_run": True}},
                }
            ],
        },
    )
    try:
        held.flip(held.weights, 100)
        began = datetime.now(UTC)
        assert held.run("verify").code == 1

        def ended() -> object:
            query = {
                "deployments": {"id": {"any_": [deployment["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}, "end_time": {"after_": began.isoformat()}},
            }
            return [run for run in api.ask("/flow_runs/filter", query) if run["created_by"]["type"] == "AUTOMATION"]

        run = until(ended, 150, "the run that the automation asked for")[0]
    finally:
        delete(api, f"/automations/{made['id']}")
    assert run["created_by"]["display_value"] == f"try repair {held.home.name}"
    assert "1 would-repair" in run["state"]["message"], "what is bad is not well, though it could be mended"
    assert "would-repair" in str(api.artifacts(run["id"])["repair-models"]["data"])
    assert held.run("verify", "--here").code == 1, "it was only priced"


def test_a_failed_run_on_a_worker_says_why_and_shows_no_traceback(api: Api, held: PrefectWorld) -> None:
    held.flip(held.weights, 100)
    ident = api.start("verify-models/weekly", config=str(held.config), copy_name="store")
    run = api.until_ended(ident)
    assert run["state_name"] == "Failed"
    assert f"{FILE} in store is corrupt" in run["state"]["message"]
    assert set(run["tags"]) == {"steelyard", "verify", "mvdream", "store"}
    lines = until(lambda: found if "Finished in state Failed" in str(found := api.logs(ident)) else None, 20, "the log")
    assert "Traceback" not in str(lines)


@pytest.mark.parametrize(
    "options",
    [
        {"models": "mvdream"},
        {"models": ["no-such-model"]},
        {"copy_name": "no-such-copy"},
        {"depth": "thorough"},
        {"no_such_option": 1},
    ],
    ids=str,
)
def test_the_api_refuses_bad_parameters(api: Api, options: dict[str, object]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.start("verify-models/weekly", **options)
    assert refused.value.code == 409


def test_a_model_has_to_be_named_for_a_restore(api: Api) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.start("restore-model/on-demand")
    assert refused.value.code == 409


def test_a_command_by_hand_is_a_run_that_shows(api: Api, prefect_world: PrefectWorld) -> None:
    done = prefect_world.run("download")
    assert done.code == 0
    assert done.of(FILE)["action"] == "downloaded"
    run = api.latest("download-models")
    assert (run["state_name"], run["deployment_id"]) == ("Completed", None)
    names = {task["name"] for task in api.tasks(run["id"])}
    assert f"fetch mvdream · {FILE}" in names
    assert len(names) == 7


def test_a_flow_is_started_by_its_module_too(api: Api, held: PrefectWorld) -> None:
    done = held.module("verify", "mvdream")
    assert done.code == 0
    assert done.of(FILE)["verdict"] == "ok"
    assert done.stdout.startswith("{"), "JSON alone is on stdout; Prefect's lines are on stderr"
    assert "Flow run 'verify · mvdream in store'" in done.stderr
    assert api.latest("verify-models")["name"] == "verify · mvdream in store"


def test_a_command_finds_the_server_that_up_announced(api: Api, held: PrefectWorld, prefect_up: Up) -> None:
    """Without PREFECT_API_URL: by the state that `steelyard up` leaves for this user."""
    del held.environment["PREFECT_API_URL"]
    held.environment["XDG_STATE_HOME"] = prefect_up.environment["XDG_STATE_HOME"]
    done = held.run("verify", "--copy", "hub-cache")
    assert done.code == 0
    assert api.latest("verify-models")["name"] == "verify · all models in hub-cache"


def test_a_flow_by_hand_finds_the_server_that_up_announced(api: Api, held: PrefectWorld, prefect_up: Up) -> None:
    """`python -m flows.VERB` has loaded Prefect, and its settings, before anyone can look for a server."""
    del held.environment["PREFECT_API_URL"]
    held.environment["XDG_STATE_HOME"] = prefect_up.environment["XDG_STATE_HOME"]
    before = len(api.by_hand("verify-models"))
    done = held.module("verify", "--copy", "usb")
    assert (done.code, "Starting temporary server" in done.stderr) == (1, False)
    assert len(api.by_hand("verify-models")) == before + 1


def test_here_keeps_a_command_out_of_prefect(api: Api, held: PrefectWorld) -> None:
    before = len(api.by_hand("verify-models"))
    assert held.run("verify", "--here").code == 0
    assert len(api.by_hand("verify-models")) == before


def test_a_command_works_where_the_api_is_away(held: PrefectWorld) -> None:
    """A restore must work on the day the orchestrator is down."""
    held.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    held.weights.unlink()
    done = held.run("restore", "mvdream")
    assert done.code == 0
    assert done.of(FILE)["action"] == "copied"
    assert "does not answer: running without it" in done.stderr


def test_wrong_use_is_told_at_once_and_is_no_run(api: Api, held: PrefectWorld) -> None:
    before = len(api.by_hand("verify-models"))
    done = held.run("verify", "no-such-model")
    assert (done.code, done.errors[0]["code"]) == (2, "unknown-model")
    held.config.unlink()
    done = held.run("verify")
    assert (done.code, done.errors[0]["code"]) == (2, "config-missing")
    assert len(api.by_hand("verify-models")) == before
