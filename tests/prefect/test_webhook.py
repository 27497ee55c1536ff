"""The Hub's webhook starts a check of just its models; whoever does not know the secret, or sends too much, gets nothing done."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deployments import webhook
from deployments.webhook import MOST_BYTES, PATH, Listener, Receiver
from steelyard.config import load_config
from tests.prefect.conftest import ROOT, Api, PrefectWorld, free_port, until

SECRET = "correct horse battery staple"
NOW = 1_800_000_000.0


def push(repo: str = "MVDream/MVDream", scope: str = "repo.content", head: str = "a" * 40, kind: str = "model") -> bytes:
    """As the Hub sends it (hub docs, webhooks)."""
    return json.dumps(
        {
            "event": {"action": "update", "scope": scope},
            "repo": {"type": kind, "name": repo, "id": "1" * 24, "private": False, "headSha": head, "owner": {"id": "2" * 24}},
            "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": head}],
            "webhook": {"id": "3" * 24, "version": 3},
        }
    ).encode()


class Served:
    """A receiver on a port of its own, and what it started."""

    def __init__(self, config: Path, port: int = 0) -> None:
        self.started: list[tuple[list[str], str, float]] = []
        self.clock = NOW
        self.broken: Exception | None = None
        self.listener = Listener(("127.0.0.1", port), Receiver(load_config(config), SECRET, self._start, lambda: self.clock))
        self.port = self.listener.server_address[1]
        self.thread = threading.Thread(target=self.listener.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def _start(self, models: Sequence[str], same: str, at: datetime) -> None:
        if self.broken:
            raise self.broken
        self.started.append((list(models), same, at.timestamp()))

    def close(self) -> None:
        self.listener.shutdown()
        self.listener.server_close()
        self.thread.join(10)

    def ask(self, body: bytes = b"", *, secret: str | None = SECRET, method: str = "POST", path: str = PATH, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            given = {
                **({"X-Webhook-Secret": secret} if secret is not None else {}),
                **{key.replace("_", "-"): value for key, value in headers.items()},
            }
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "steelyard.toml"
    path.write_text(
        f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[hub]\nwebhook_port = 0\n'
        '[models.one]\nrepo_id = "MVDream/MVDream"\nfiles = ["a.pt"]\n[models.two]\nrepo_id = "MVDream/MVDream"\nfiles = ["b.pt"]\n'
        '[models.other]\nrepo_id = "a/b"\n'
    )
    return path


@pytest.fixture
def served(config: Path) -> Iterator[Served]:
    found = Served(config)
    yield found
    found.close()


def test_a_push_starts_a_check_of_the_models_of_that_repo(served: Served) -> None:
    assert served.ask(push()) == 202
    assert [(models, at) for models, _, at in served.started] == [(["one", "two"], NOW)]


@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET[:-1], SECRET + "x", "ü" * 30, "x" * 8000])
def test_who_does_not_know_the_secret_starts_nothing(served: Served, secret: str | None) -> None:
    given = secret.encode().decode("latin-1") if secret else secret
    assert served.ask(push(), secret=given) == 401
    assert served.started == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (push("someone/else"), 200),
        (push(kind="dataset"), 200),
        (push(scope="discussion.comment"), 200),
        (push("MVDream/MVDream/../../x"), 200),
        (b"", 400),
        (b"{}", 400),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b'{"event": {"scope": "repo"}, "repo": 7}', 400),
        (b"[" * 60_000, 400),
    ],
)
def test_what_is_none_of_ours_starts_nothing(served: Served, body: bytes, status: int) -> None:
    assert served.ask(body) == status
    assert served.started == []


def test_a_body_has_a_length_and_it_is_bounded(served: Served) -> None:
    assert served.ask(b"", Content_Length=str(MOST_BYTES + 1)) == 413
    assert served.ask(b"", Content_Length="9" * 30) == 413
    assert served.ask(b"", Content_Length="-1") == 411
    assert served.ask(b"", Transfer_Encoding="chunked") == 411
    assert served.ask(push(), path="/") == 404
    assert served.ask(method="GET") == 405
    assert served.started == []


def test_ten_pushes_in_a_minute_are_one_check_now_and_one_at_its_end(served: Served) -> None:
    for count in range(10):
        served.clock = NOW + count
        assert served.ask(push(head=f"{count:040x}")) == 202
    keys = {same: at for _, same, at in served.started}
    assert sorted(keys.values()) == [NOW, NOW + 60], "Prefect makes one run of what has one key"
    served.clock = NOW + 61
    assert served.ask(push(head="f" * 40)) == 202
    assert served.started[-1][2] == NOW + 61


def test_a_delivery_that_is_repeated_is_the_same_one(served: Served) -> None:
    assert served.ask(push()) == 202
    served.clock = NOW + 3600
    assert served.ask(push()) == 202
    assert len({same for _, same, _ in served.started}) == 1


def test_more_than_sixty_a_minute_are_turned_away_unread(served: Served) -> None:
    answers = [served.ask(push(), secret="wrong secret") for _ in range(62)]
    assert answers == [401] * 60 + [429] * 2
    served.clock += 61
    assert served.ask(push()) == 202


def test_prefect_that_is_away_is_said_so(served: Served) -> None:
    served.broken = OSError("refused")
    assert served.ask(push()) == 503


def test_a_client_that_never_ends_does_not_keep_others_out(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PATIENCE_S", 0.2)
    monkeypatch.setattr(webhook._Handler, "timeout", 0.2)
    served = Served(config)
    try:
        idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(webhook.MOST_AT_ONCE)]
        assert until(lambda: _answered(lambda: served.ask(push())), 10, "a slot") == 202
        for one in idle:
            one.close()
    finally:
        served.close()


def _answered(ask: Callable[[], int]) -> int | None:
    try:
        return ask()
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.parametrize("secret", ["", "short"])
def test_without_a_real_secret_it_does_not_start(config: Path, secret: str) -> None:
    environment = {**os.environ, "STEELYARD_WEBHOOK_SECRET": secret}
    command = [sys.executable, "-m", "deployments.webhook", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "STEELYARD_WEBHOOK_SECRET" in done.stderr
    assert "Traceback" not in done.stderr
    up = [sys.executable, "-m", "deployments.up", "--config", str(config), "--port", str(free_port()), "--json"]
    environment["XDG_STATE_HOME"] = str(config.parent / "state")
    done = subprocess.run(up, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["errors"][0]["code"]) == (2, "usage"), "before any server is started"


def test_a_real_receiver_starts_a_real_run_once(api: Api, held: PrefectWorld) -> None:
    """The program itself, its secret from the environment, against the Prefect server: one run for a delivery and its repetition."""
    held.configure(hub="webhook_port = 0")
    environment = {**held.environment, "STEELYARD_WEBHOOK_SECRET": SECRET, "PREFECT_API_URL": api.url}
    command = [sys.executable, "-m", "deployments.webhook", "--config", str(held.config)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])

        def deliver() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", PATH, push(head=head), {"X-Webhook-Secret": SECRET})
            return connection.getresponse().status

        head = os.urandom(20).hex()
        assert (deliver(), deliver()) == (202, 202)
        runs: list[dict[str, Any]] = api.ask(
            "/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["webhook"]}}, "sort": "START_TIME_DESC", "limit": 20}
        )
        assert [run["parameters"]["options"]["models"] for run in runs] == [["mvdream"]]
        api.until_ended(runs[0]["id"], 120)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert SECRET not in errors
