"""steelyard up: server, UI, worker and schedules on this machine, until Ctrl-C.

Knows Prefect only as programs it starts and as an address that answers: this process stays small and ends the others in order.

    python -m deployments.up [--host H] [--port P] [--status-port P] [--config F] [--json]

Exit codes: 0 ended by Ctrl-C or SIGTERM · 2 the config can't be read · 3 refused: one runs already, the port is taken, or the address is
not the loopback and PREFECT_SERVER_API_AUTH_STRING is not set · 4 the server or the worker can't be kept running.
"""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from deployments import underway
from deployments.children import Child
from deployments.status_page import StatusPage
from deployments.webhook import SECRET, secret_of
from steelyard import orchestrator
from steelyard.config import config_path, load_config
from steelyard.errors import OtherSide, Refused, SteelyardError, UsageError
from steelyard.report import Report, Row
from steelyard.terminal import show_error, show_json

HOME = Path(__file__).resolve().parents[1]
"""The folder that the flows are run from; in the repo, the one with prefect.yaml."""
PREFECT_YAML = next(
    (path for path in (HOME / "prefect.yaml", Path(__file__).with_name("prefect.yaml")) if path.is_file()), HOME / "prefect.yaml"
)
POOL = "steelyard"
SERVER_START_S = 240.0
APPLY_S = 240.0
STOP_RUNS_S, STOP_WORKER_S, STOP_SERVER_S = 15.0, 15.0, 10.0
MOST_RESTARTS, WITHIN_S = 3, 600.0


class CannotRun(OtherSide):
    """The {name} does not stay up: {why}"""

    code = "up"
    hint = "look at {log}"


class AlreadyUp(Refused):
    """Steelyard is up already: {who}."""

    code = "locked"
    hint = "use that one, or end it with Ctrl-C there (or: systemctl --user stop steelyard)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="steelyard up", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default=os.environ.get("PREFECT_SERVER_API_HOST") or "127.0.0.1")
    parser.add_argument("--port", default=os.environ.get("PREFECT_SERVER_API_PORT") or "4200")
    parser.add_argument("--status-port", help="the status page's port on the loopback; else the one after --port, else any")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout when all is up, or when it is refused")
    options = parser.parse_args(argv)
    try:
        port = port_of(options.port, "--port (or PREFECT_SERVER_API_PORT)")
        status_port = port_of(options.status_port, "--status-port") if options.status_port is not None else None
        with _only_one():
            hub = load_config(options.config).hub
            _check_address(options.host, port)
            if hub.webhook_port is not None:
                secret_of(os.environ)
                _check_free(hub.webhook_host, hub.webhook_port, "set another [hub] webhook_port")
            return _run(
                options.host,
                port,
                config_path(options.config),
                status_port,
                webhook=hub.webhook_port is not None,
                wants_json=options.json,
            )
    except SteelyardError as error:
        if options.json:
            report = Report("up")
            report.errors.append(error)
            show_json(report.close())
        else:
            show_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 0


def _run(host: str, port: int, config: Path, status_port: int | None, *, webhook: bool, wants_json: bool) -> int:
    environment = surroundings(host, port, config)
    if secret := environment.get("PREFECT_API_AUTH_STRING"):
        os.environ["PREFECT_API_AUTH_STRING"] = secret  # this process asks the API too
    logs = orchestrator.state_folder() / "logs"
    python = [sys.executable, "-m", "prefect"]
    name = f"steelyard-{socket.gethostname()}"
    server = Child("server", [*python, "server", "start", "--host", host, "--port", str(port)], environment, logs / "server.log")
    worker = Child(
        "worker",
        [*python, "worker", "start", "--pool", POOL, "--type", "process", "--name", name],
        environment,
        logs / "worker.log",
    )
    # Alone the receiver knows the secret: a run's environment may be looked at.
    told = {**environment, SECRET: os.environ.get(SECRET, "")}
    hook = Child("webhook", [sys.executable, "-m", "deployments.webhook", "--config", str(config)], told, logs / "webhook.log")
    page = StatusPage(config, environment, orchestrator.state_folder() / "page")
    stop = _Stop()
    try:
        with stop.on_signals():
            _say(f"starting the Prefect server on {host}:{port} (its first start makes a database and takes up to half a minute)")
            server.start()
            _await_server(server, environment["PREFECT_API_URL"], stop)
            _say("applying deployments, schedules and automations")
            _apply(environment, logs / "apply.log", stop)
            _settle(environment["PREFECT_API_URL"], name)
            worker.start()
            if webhook:
                hook.start()
            orchestrator.announce(environment["PREFECT_API_URL"])
            _announce(environment, config, logs, _serve(page, port, status_port), wants_json=wants_json)
            return _watch([server, worker, *([hook] if webhook else [])], stop)
    except _Asked:
        return 0
    finally:
        orchestrator.withdraw()
        page.stop()
        # The runs first, then the worker, while the server is there to record it.
        _say("ending the worker and the server")
        hook.stop(2.0)
        if worker.process is not None and worker.ended() is None:
            with suppress(OSError, ValueError, KeyError):
                underway.cancel(environment["PREFECT_API_URL"], POOL, STOP_RUNS_S)
        worker.stop(STOP_WORKER_S)
        server.stop(STOP_SERVER_S)


def _serve(page: StatusPage, port: int, wanted: int | None) -> str:
    """The status page's address, or "" where it can't be served: no reason not to be up."""
    try:
        return page.start(wanted) if wanted is not None else page.start(min(port + 1, 65_535), 0)
    except (OSError, OverflowError) as error:
        _say(f"the status page is not served: {error}; write it with: steelyard status --html FILE")
        return ""


# --- before


@contextmanager
def _only_one() -> Iterator[None]:
    """:raises AlreadyUp: when a `steelyard up` of this user runs, saying where."""
    folder = orchestrator.state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = orchestrator.running()
            who = f"process {found.pid}, its UI is at {_ui(found.api_url)}" if found else "it is just starting"
            raise AlreadyUp(who=who) from error
        yield


def _check_address(host: str, port: int) -> None:
    if not is_loopback(host) and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise Refused(
            why=f"{host} can be reached by others, and the API has no password",
            hint="set PREFECT_SERVER_API_AUTH_STRING=user:password, or leave --host away",
        )
    _check_free(host, port, "give another --port")


def _check_free(host: str, port: int, hint: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Refused(why=f"{host}:{port} can't be listened on: {error.strerror or error}", hint=hint) from error


def port_of(text: str, name: str) -> int:
    """:raises UsageError: when *text* is no port."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= 65_535):
        raise UsageError(why=f"{name} is {text!r}, which is no port", hint="name one between 1 and 65535")
    return int(text)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def surroundings(host: str, port: int, config: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of server, worker and runs. PREFECT_HOME stays the user's own; what the user has set wins, but for addresses."""
    at = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    ours = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Prefect keeps runs, logs and artifacts for ever by default.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 86400),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "180",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_CLI_COLORS": "false",
        "PREFECT_LOGGING_COLORS": "false",
    }
    environment = {**ours, **base}
    environment |= {
        "PREFECT_API_URL": f"http://{at}:{port}/api",
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "STEELYARD_CONFIG": str(config),
        "STEELYARD_HOME": str(HOME),
        "PYTHONUNBUFFERED": "1",
    }
    if secret := base.get("PREFECT_SERVER_API_AUTH_STRING"):
        environment["PREFECT_API_AUTH_STRING"] = secret
    environment.pop("PREFECT_API_KEY", None)
    environment.pop(SECRET, None)
    # Flows are found by name from here; `python -m` puts the current folder first, and children may have another.
    environment["PYTHONPATH"] = os.pathsep.join([str(HOME), *filter(None, [base.get("PYTHONPATH")])])
    return environment


# --- while


class _Asked(Exception):
    """A stop was asked for."""


class _Stop:
    def __init__(self) -> None:
        self.asked = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        # The handlers stay: a second Ctrl-C must not leave processes behind. Ending takes bounded time.
        yield

    def check(self) -> None:
        if self.asked:
            raise _Asked()


def _await_server(server: Child, api_url: str, stop: _Stop) -> None:
    ends = time.monotonic() + SERVER_START_S
    while not orchestrator.answers(api_url):
        stop.check()
        if server.ended() is not None:
            raise CannotRun(name="server", why=server.last_lines(3) or f"it ended with code {server.ended()}", log=server.log)
        if time.monotonic() > ends:
            raise CannotRun(name="server", why=f"no answer within {SERVER_START_S:.0f} s", log=server.log)
        time.sleep(0.25)


def _apply(environment: Mapping[str, str], log: Path, stop: _Stop) -> None:
    child = Child("set-up", [sys.executable, "-m", "deployments.apply", str(PREFECT_YAML)], environment, log)
    child.start()
    ends = time.monotonic() + APPLY_S
    try:
        while child.ended() is None:
            stop.check()
            if time.monotonic() > ends:
                raise CannotRun(name="set-up", why=f"not done within {APPLY_S:.0f} s", log=log)
            time.sleep(0.1)
    finally:
        child.stop(2.0)
    if child.ended() != 0:
        raise CannotRun(name="set-up", why=child.last_lines(3), log=log)


def _settle(api_url: str, worker: str) -> None:
    try:
        for run in underway.settle(api_url, POOL, worker):
            _say(f"{run} was under way when the last server ended: its process is gone, and so is its claim")
    except (OSError, ValueError, KeyError) as error:
        _say(f"runs that were under way could not be looked at: {error}; their missing heartbeats will tell")


def _watch(children: Sequence[Child], stop: _Stop) -> int:
    """Keep the children running until a stop is asked for. :raises CannotRun: when one ends four times within ten minutes."""
    while True:
        stop.check()
        for child in children:
            if child.ended() is None:
                continue
            lately = [at for at in child.started if time.monotonic() - at < WITHIN_S]
            if len(lately) > MOST_RESTARTS:
                raise CannotRun(name=child.name, why=child.last_lines(3) or f"it ended with code {child.ended()}", log=child.log)
            _say(f"the {child.name} ended with code {child.ended()}; starting it again")
            child.stop(0.0)
            child.start()
        time.sleep(0.5)


# --- said


def _ui(api_url: str) -> str:
    return api_url.removesuffix("/api")


def _announce(environment: Mapping[str, str], config: Path, logs: Path, status_url: str, *, wants_json: bool) -> None:
    url = _ui(environment["PREFECT_API_URL"])
    if wants_json:
        facts = {
            "action": "up",
            "url": url,
            "api_url": environment["PREFECT_API_URL"],
            "status_url": status_url,
            "pid": os.getpid(),
            "logs": str(logs),
        }
        show_json(Report("up", rows=[Row(path=str(config), facts=facts)]).close())
    else:
        sys.stdout.write(
            f"Steelyard is up: {url}\n{f'  status {status_url}' + chr(10) if status_url else ''}  config {config}\n  logs   {logs}\n  end it with Ctrl-C\n"
        )
        sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
