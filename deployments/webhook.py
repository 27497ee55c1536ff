"""The Hub's webhook as an accelerator: a push to a repo we hold starts check-updates for its models at once. The schedule does without it.

Started by `steelyard up` where `[hub] webhook_port` is set; on the loopback unless `webhook_host` says otherwise. What reaches it from outside
(a reverse proxy, a tunnel) is yours. The secret that the Hub sends as X-Webhook-Secret is in STEELYARD_WEBHOOK_SECRET and in no file.

    python -m deployments.webhook [--config F]

It believes nothing of what it is told but the repo's name: that repo is then asked. Answers: 202 a check was started or stands in line · 200 not a
repo of ours, or nothing that concerns weights · 400 no webhook of the Hub · 401 another secret · 404, 405, 411, 413 · 429 too many · 503 Prefect is away.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any, NoReturn

from steelyard import orchestrator
from steelyard.config import Config, load_config
from steelyard.errors import ConfigBroken, SteelyardError, UsageError
from steelyard.markdown import shown
from steelyard.terminal import set_up_logging, show_error

log = logging.getLogger("steelyard.webhook")

PATH = "/hub-webhook"
SECRET = "STEELYARD_WEBHOOK_SECRET"  # noqa: S105 (the name of the variable)
DEPLOYMENT = "check-updates/daily"
MOST_BYTES = 64 * 1024
LEAST_SECRET = 16
"""A secret that can be guessed is none."""
PATIENCE_S = 10.0
"""Longest silence of a client, and longest time of a request."""
BUSY_S = 4.0
"""How long a Prefect server that is busy is asked again; a sender who waits for us gives up later than that."""
MOST_AT_ONCE = 8
MOST_A_MINUTE = 60
APART_S = 60.0
"""Checks of one repo are so far apart: ten pushes in a minute are one check now and one at its end."""

Starter = Callable[[Sequence[str], str, datetime], None]
"""Starts a check of some models: names, what makes it the same one, when."""


class Denied(Exception):
    """An answer that is no success."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Receiver:
    """What is done with a request, apart from HTTP. Safe from several threads."""

    def __init__(self, config: Config, secret: str, start: Starter, now: Callable[[], float] = time.time) -> None:
        self._models: dict[str, list[str]] = {}
        for name, model in config.models.items():
            self._models.setdefault(model.repo_id.lower(), []).append(name)
        self._secret = secret.encode()
        self._start = start
        self._now = now
        self._lock = threading.Lock()
        self._asked: deque[float] = deque()
        self._next: dict[str, float] = {}
        self._last: dict[str, tuple[str, str]] = {}

    def admit(self) -> None:
        """:raises Denied: 429, for requests beyond what the Hub would ever send; before anything of them is read."""
        with self._lock:
            now = self._now()
            while self._asked and self._asked[0] < now - 60:
                self._asked.popleft()
            if len(self._asked) >= MOST_A_MINUTE:
                raise Denied(HTTPStatus.TOO_MANY_REQUESTS, "too many requests")
            self._asked.append(now)

    def check_secret(self, given: str | None) -> None:
        """:raises Denied: 401. It takes as long whatever is given."""
        # Digests first: compare_digest would tell the length of ours by its time.
        one, other = (hashlib.sha256(text).digest() for text in (self._secret, (given or "").encode("utf-8", "replace")))
        if not hmac.compare_digest(one, other):
            log.warning("a webhook with another secret was refused")
            raise Denied(HTTPStatus.UNAUTHORIZED, "the secret is not the one agreed on")

    def take(self, body: bytes) -> tuple[HTTPStatus, dict[str, Any]]:
        """What to answer to a webhook whose secret was right. :raises Denied: 400, 503."""
        repo, head = _told(body)
        models = self._models.get(repo.lower(), [])
        if not models:
            return HTTPStatus.OK, {"ignored": "nothing here concerns a model that is kept"}
        with self._lock:
            now = self._now()
            at = max(now, self._next.get(repo.lower(), 0.0))
            later = at > now
            if not later:
                self._next[repo.lower()] = now + APART_S
            # Deliveries that are repeated, or come while one stands in line, have one key: Prefect then makes one run of them.
            same = f"hub-webhook {repo} {int(at) if later else head or int(at)}"
            known, told = self._last.get(repo.lower(), ("", ""))
            if head and head == known:
                at, same = now, told
            self._last[repo.lower()] = (head, same)
        try:
            self._start(models, same, datetime.fromtimestamp(at, UTC))
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s: no check could be started: %s", shown(repo), type(error).__name__)
            raise Denied(HTTPStatus.SERVICE_UNAVAILABLE, "no check could be started now") from error
        log.info("%s: the Hub told of a change; checking %s%s", shown(repo), ", ".join(models), " in a minute" if later else "")
        return HTTPStatus.ACCEPTED, {"checking": models}


def _told(body: bytes) -> tuple[str, str]:
    """The model repo that a webhook is about and its head; an empty name where it is about something else. :raises Denied: 400."""
    try:
        told = json.loads(body)
        repo, scope = told["repo"], str(told["event"]["scope"])
        name, kind, head = str(repo["name"]), str(repo.get("type", "model")), str(repo.get("headSha") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Denied(HTTPStatus.BAD_REQUEST, "this is no webhook of the Hub") from error
    concerns = kind == "model" and scope.split(".")[0] == "repo"
    return (name if concerns else ""), head


def start_check(models: Sequence[str], same: str, at: datetime) -> None:
    """A run of the check-updates deployment for *models* at *at*, once for *same*. :raises OSError, ValueError, KeyError: when Prefect does not take it."""
    url = orchestrator.api_url()
    if url is None:
        raise OSError("no Prefect API is configured")
    found = orchestrator.ask(url, f"/deployments/name/{DEPLOYMENT}", patience_s=BUSY_S)
    wanted = {
        "parameters": {"options": {"models": list(models)}},
        "idempotency_key": hashlib.sha256(same.encode()).hexdigest(),
        "tags": ["webhook"],
        "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": max(at, datetime.now(UTC) - timedelta(seconds=1)).isoformat()}},
    }
    orchestrator.ask(url, f"/deployments/{found['id']}/create_flow_run", wanted, patience_s=BUSY_S)


class _Handler(BaseHTTPRequestHandler):
    server: Listener
    timeout = PATIENCE_S
    protocol_version = "HTTP/1.0"
    server_version = "steelyard"
    sys_version = ""

    def do_POST(self) -> None:
        try:
            self.server.receiver.admit()
            if self.path.partition("?")[0] != PATH:
                raise Denied(HTTPStatus.NOT_FOUND, "nothing is here")
            self.server.receiver.check_secret(self.headers.get("X-Webhook-Secret"))
            status, answer = self.server.receiver.take(self._body())
        except Denied as denied:
            status, answer = denied.status, {"error": str(denied)}
        self._answer(status, answer)

    def do_GET(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only POST"})

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _body(self) -> bytes:
        """:raises Denied: 411 without a length, 413 beyond MOST_BYTES, 400 where less comes within PATIENCE_S than was announced."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or self.headers.get("Transfer-Encoding"):
            raise Denied(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if len(length) > 9 or int(length) > MOST_BYTES:
            raise Denied(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES} bytes")
        ends = time.monotonic() + PATIENCE_S
        body = bytearray()
        while len(body) < int(length):
            try:
                part = self.rfile.read1(int(length) - len(body))
            except OSError as error:
                raise Denied(HTTPStatus.REQUEST_TIMEOUT, "the rest did not come") from error
            body += part
            if not part or time.monotonic() > ends:
                break
        if len(body) != int(length):
            raise Denied(HTTPStatus.BAD_REQUEST, "fewer bytes than announced")
        return bytes(body)

    def _answer(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", "60")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return  # what matters is logged where it is decided; nothing that a stranger sends is


class Listener(ThreadingHTTPServer):
    """At most MOST_AT_ONCE requests at a time; who comes beyond that is cut off and may come again."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        # A client that drips its headers holds a slot no longer than an honest one would.
        end = threading.Timer(2 * PATIENCE_S, self._cut, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._slots.release()

    @staticmethod
    def _cut(request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        log.info("a webhook's connection broke: %s", type(sys.exception()).__name__)


def secret_of(environment: os._Environ[str] | dict[str, str]) -> str:
    """:raises UsageError: when there is none, or one too short to be one."""
    secret = environment.get(SECRET, "")
    if len(secret) < LEAST_SECRET:
        why = f"[hub] webhook_port is set, but {SECRET} is {'too short' if secret else 'not set'}: without a secret anyone could call it"
        hint = f"set {SECRET} to the secret of the webhook on the Hub ({LEAST_SECRET} characters or more), or take webhook_port out"
        raise UsageError(why=why, hint=hint)
    return secret


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.webhook", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path)
    options = parser.parse_args(argv)
    set_up_logging()
    try:
        config = load_config(options.config)
        if config.hub.webhook_port is None:
            raise ConfigBroken(path=str(options.config or "steelyard.toml"), key="hub.webhook_port", why="is not set")
        receiver = Receiver(config, secret_of(os.environ), start_check)
        listener = Listener((config.hub.webhook_host, config.hub.webhook_port), receiver)
    except SteelyardError as error:
        show_error(error)
        return error.exit_code
    except OSError as error:
        show_error(SteelyardError(why=f"the webhook's port can't be listened on: {error.strerror or error}"))
        return 3

    def stop(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    host, port = listener.server_address[:2]
    sys.stdout.write(f"listening for the Hub on http://{host!s}:{port}{PATH}\n")
    sys.stdout.flush()
    with listener:
        try:
            listener.serve_forever(poll_interval=0.5)
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
