"""Out of one machine: PostgreSQL, Redis, two servers and three workers as real processes; and what each part refuses to start without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.fleet import for_pool, main, server_environment, shared_settings, worker_environment
from steelyard.errors import Refused, UsageError
from tests.fleet.proof import prove
from tests.fleet.room import ROOT, what_is_missing

WHY_NOT = what_is_missing()
ENOUGH = {"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://p:w@db/prefect", "STEELYARD_REDIS_URL": "redis://r:6379/0"}


LONG = bool(os.environ.get("STEELYARD_LONG"))


@pytest.mark.prefect
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_nothing_is_lost_and_nothing_is_done_twice_while_workers_are_killed(tmp_path: Path) -> None:
    """Always a worker and a run; with STEELYARD_LONG=1 a whole machine too, whose runs are missed only by their heartbeats."""
    lines: list[str] = []
    runs, kinds = (10, ("worker", "machine", "run")) if LONG else (6, ("worker", "run"))
    proof = prove(tmp_path, runs=runs, kills=len(kinds), kinds=kinds, kill_a_server=False, seed=1, say=lines.append, within_s=600)
    sys.stderr.write("\n".join([*lines, json.dumps(proof.as_json())]))
    proof.check()
    assert sum(proof.kills.values()), "nobody was killed, so nothing was proven"


# --- settings


def test_servers_share_all_that_one_keeps_in_memory() -> None:
    found = server_environment("127.0.0.1", 4200, ENOUGH)
    assert {name: found[name] for name in shared_settings("x")} == shared_settings("redis://r:6379/0")
    assert found["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "true"
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_what_prefect_calls_these_settings_exists() -> None:
    """A misspelt variable would be passed over without a word: two servers would then each keep their own events."""
    code = (
        "import json, sys\nfrom prefect.settings import get_current_settings as now\ns = now().server\n"
        "print(json.dumps([s.events.messaging_broker, s.events.messaging_cache, s.events.causal_ordering, s.concurrency.lease_storage,"
        "s.worker_channel.cleanup_queue_storage, s.docket.url, s.database.connection_url.get_secret_value(),"
        "sorted(s.services.db_vacuum.enabled_vacuum_types), s.analytics_enabled]))"
    )
    environment = {**server_environment("127.0.0.1", 4200, ENOUGH), "PREFECT_HOME": "/nonexistent", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "prefect_redis.messaging",
        "prefect_redis.messaging",
        "prefect_redis.ordering",
        "prefect_redis.lease_storage",
        "prefect_redis.cleanup_queue",
        "redis://r:6379/0",
        ENOUGH["PREFECT_API_DATABASE_CONNECTION_URL"],
        ["events", "flow_runs", "orphans"],
        False,
    ]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"PREFECT_API_DATABASE_CONNECTION_URL": ""}, "PostgreSQL"),
        ({"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///x.db"}, "PostgreSQL"),
        ({"STEELYARD_REDIS_URL": ""}, "Redis"),
        ({"STEELYARD_REDIS_URL": "http://r"}, "Redis"),
    ],
    ids=str,
)
def test_a_server_that_would_be_alone_does_not_start(changed: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        server_environment("127.0.0.1", 4200, {**ENOUGH, **changed})


def test_an_address_that_others_reach_needs_a_password() -> None:
    with pytest.raises(Refused, match="no password"):
        server_environment("0.0.0.0", 4200, ENOUGH)
    found = server_environment("0.0.0.0", 4200, {**ENOUGH, "PREFECT_SERVER_API_AUTH_STRING": "a:b"})
    assert found["PREFECT_API_AUTH_STRING"] == "a:b"


def test_a_worker_is_told_where_the_servers_are() -> None:
    with pytest.raises(UsageError, match="PREFECT_API_URL"):
        worker_environment({})
    found = worker_environment({"PREFECT_API_URL": "http://box:4200/api"})
    assert found["PREFECT_API_URL"] == "http://box:4200/api"
    assert "PREFECT_SERVER_API_PORT" not in found


def test_no_password_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["environment"]) == 0
    assert "PREFECT_REDIS_MESSAGING_URL=$STEELYARD_REDIS_URL" in capsys.readouterr().out


def test_wrong_use_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL", raising=False)
    assert main(["server"]) == 2
    assert "names none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["apply", "--pool", "No such name"])


# --- one prefect.yaml


def declared() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    return content


def test_each_machine_has_deployments_of_its_own_from_the_same_file() -> None:
    ours, theirs = for_pool(declared(), "steelyard"), for_pool(declared(), "steelyard-atlas")
    assert [one["name"] for one in ours["deployments"]] == [one["name"] for one in declared()["deployments"]]
    assert "nightly-atlas" in [one["name"] for one in theirs["deployments"]]
    assert {one["work_pool"]["name"] for one in theirs["deployments"]} == {"steelyard-atlas"}
    assert all("pool:steelyard-atlas" in one["tags"] and "steelyard" in one["tags"] for one in theirs["deployments"])
    assert ours["deployments"][0]["schedules"] == declared()["deployments"][0]["schedules"]
    assert for_pool(declared(), "steelyard", 4)["deployments"][0]["concurrency_limit"]["limit"] == 4
    assert theirs["pull"][1:] == declared()["pull"]


def test_a_hundred_machines_do_not_all_begin_in_the_same_minute() -> None:
    def nightly(pool: str) -> str:
        (one,) = (one for one in for_pool(declared(), pool)["deployments"] if "schedules" in one and one["name"].startswith("nightly"))
        cron: str = one["schedules"][0]["cron"]
        return cron

    crons = [nightly(f"steelyard-h{number:03}") for number in range(100)]
    assert all(cron.endswith(" 2 * * *") for cron in crons), "in the hour that prefect.yaml says"
    assert max(crons.count(cron) for cron in crons) <= 8
    assert nightly("steelyard-atlas") == nightly("steelyard-atlas")


# --- Kubernetes and the container


def template() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "deployments" / "kubernetes-job.json").read_text(encoding="utf-8"))
    return content


def test_every_variable_of_the_job_template_is_declared_and_used() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template()["job_configuration"])))
    properties = template()["variables"]["properties"]
    assert used == set(properties)
    assert all(one["description"] and one["title"] for one in properties.values())


def test_the_job_runs_with_few_rights_and_no_secret_stands_in_it() -> None:
    pod = template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "secretRef" in container["envFrom"][0]
    assert pod["terminationGracePeriodSeconds"] >= 60, "a run that is told to end needs time to leave a state it can go on from"
    assert container["volumeMounts"][1]["mountPath"] in template()["variables"]["properties"]["env"]["default"]["STEELYARD_CONFIG"]


def test_prefect_accepts_the_job_template() -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    made = WorkPoolCreate(name="steelyard-k8s", type="kubernetes", base_job_template=template())
    assert made.base_job_template["variables"]["required"] == ["store_claim"]


def test_the_container_file_installs_what_the_project_pins() -> None:
    text = (ROOT / "deployments" / "Containerfile").read_text(encoding="utf-8")
    assert "-c constraints.txt" in text
    assert re.search(r"^USER 1000", text, re.MULTILINE), "the job template says runAsNonRoot"
    assert "STEELYARD_HOME=/opt/steelyard" in text
    for name in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE):
        assert all((ROOT / one).exists() for one in name.split()), name
