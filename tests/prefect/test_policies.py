"""Updates in Prefect: the nightly round takes what its policy leaves to it, a person approves a plan in a form, and nobody is told twice."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.standins.weights import second_revision
from tests.conftest import FILE, REPO
from tests.prefect.conftest import Api, PrefectWorld, until

LAYER = "model.diffusion_model.l{}.weight"


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("newer") / "w.pt"
    second_revision(checkpoint, path, {LAYER.format(3)})
    return path


def with_policy(world: PrefectWorld, policy: str) -> None:
    world.config.write_text(world.config.read_text().replace(f'repo_id = "{REPO}"', f'repo_id = "{REPO}"\nupdate = "{policy}"'))


def commit_of(world: PrefectWorld) -> str:
    return world.site().lock().models["mvdream"].commit


def events_of(api: Api, run: str) -> list[str]:
    """Our events of one run."""
    query = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run}"]}, "event": {"prefix": ["steelyard."]}}, "limit": 50}
    return [one["event"] for one in api.ask("/events/filter", query)["events"]]


def test_the_nightly_round_takes_what_is_drop_in_and_scanned_clean_and_carries_it_on(api: Api, held: PrefectWorld, newer: Path) -> None:
    with_policy(held, "auto")
    new = held.hub.add_revision(REPO, {FILE: newer})
    done = held.module("keep_models")
    assert done.code == 0, done.stderr
    outcomes = [(row["verb"], row.get("verdict") or row.get("action")) for row in done.rows]
    assert outcomes.index(("update", "updated")) < outcomes.index(("backup", "copied"), outcomes.index(("update", "updated")))
    assert commit_of(held) == new
    assert (held.usb / "mvdream" / new).is_dir()
    run = api.latest("keep-models")
    assert {task["name"] for task in api.tasks(run["id"])} >= {"hold mvdream to the plan that was approved", f"switch mvdream to {new[:8]}"}
    # They are stored one by one.
    told = until(lambda: found if len(found := events_of(api, run["id"])) > 1 else None, 30, "both events")
    assert sorted(told) == ["steelyard.update.applied", "steelyard.update.available"]
    again = held.module("keep_models")
    assert again.code == 0
    assert events_of(api, api.latest("keep-models")["id"]) == []


def test_a_plan_is_approved_in_a_form_and_another_one_is_refused(api: Api, held: PrefectWorld, newer: Path) -> None:
    with_policy(held, "approve")
    before = commit_of(held)
    new = held.hub.add_revision(REPO, {FILE: newer})
    assert held.run("check-updates").code == 0
    run = api.latest("check-updates")
    shown = api.artifacts(run["id"])["update-mvdream"]["data"]
    plan = held.run("check-updates", "--here").rows[0]["plan"]
    assert f"Digest: `{plan}`" in shown
    assert "**Drop-in**" in shown and f'"upstream_commit": "{new}"' in shown
    assert commit_of(held) == before

    with pytest.raises(OSError, match=r"409|422"):
        api.start("apply-update/approved", model="mvdream", plan="yes", config=str(held.config))
    wrong = api.until_ended(api.start("apply-update/approved", model="mvdream", plan="0" * 64, config=str(held.config)), 120)
    assert wrong["state_type"] == "FAILED"
    assert "not the plan that was approved" in wrong["state"]["message"]
    assert commit_of(held) == before
    right = api.until_ended(api.start("apply-update/approved", model="mvdream", plan=plan, config=str(held.config)), 120)
    assert right["state_type"] == "COMPLETED", right["state"]["message"]
    assert right["name"] == f"apply · mvdream → plan {plan.removeprefix('sha256:')[:12]}"
    assert commit_of(held) == new


@pytest.fixture
def ears() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Somebody's webhook on the loopback, and what it was called with."""
    heard: list[dict[str, Any]] = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", heard
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_webhook_that_the_user_made_is_called_once(
    api: Api, held: PrefectWorld, newer: Path, ears: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The automation as `up` applies it, with a block as the UI makes it."""
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from deployments.automations import automations, notifications

    url, heard = ears
    with temporary_settings({PREFECT_API_URL: api.url}):
        Webhook(method="POST", url=url).save("ears", overwrite=True, _sync=True)  # type: ignore[call-overload]
        monkeypatch.setenv("STEELYARD_NOTIFY", "webhook/ears")
        with get_client(sync_client=True) as client:
            wanted = next(one for one in automations(notifications(client)) if one.name == "steelyard: update available")
            made = client.create_automation(wanted.model_copy(update={"name": "ears: update available"}))
    try:
        held.hub.add_revision(REPO, {FILE: newer}, title='with "quotes" and \\ and\nlines')
        for _ in range(2):
            assert held.run("check-updates").code == 0
        told = until(lambda: [one for one in heard if one["told"].startswith("mvdream")], 60, "the call")
        assert told[0]["event"] == "steelyard.update.available"
        assert f"1 of our files changed: {FILE}" in told[0]["told"]
        assert len(told) == 1
    finally:
        with temporary_settings({PREFECT_API_URL: api.url}), get_client(sync_client=True) as client:
            client.delete_automation(made)
