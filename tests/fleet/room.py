"""A fleet on the loopback: PostgreSQL, Redis, several Prefect servers and workers, each a process of its own that may be killed at any time."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from steelyard import orchestrator
from steelyard.orchestrator import process_ticks
from tests.conftest import clean_environment
from tests.prefect.conftest import Api, free_port, until

ROOT = Path(__file__).resolve().parents[2]


def postgres_bin() -> Path | None:
    """The folder with initdb and postgres: on the PATH, else where Debian puts them."""
    places = [Path(found).parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists() and (place / "initdb").exists()), None)


def what_is_missing() -> str:
    """Why no fleet can be made here, or ""."""
    if postgres_bin() is None:
        return "needs PostgreSQL (apt-get install postgresql)"
    if shutil.which("redis-server") is None:
        return "needs Redis (apt-get install redis-server)"
    if os.geteuid() == 0 and not _has_postgres_user():
        return "PostgreSQL does not run as root, and there is no user postgres"
    try:
        import prefect_redis  # noqa: F401
    except ImportError:
        return "needs prefect-redis (pip install 'steelyard[fleet]')"
    return ""


def _has_postgres_user() -> bool:
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """*pid* and everything it started, as far as it is still below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += parents.get(one, [])
    return found


@dataclass
class Process:
    """One program with its log; killed with or without what it started."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    user: str | None = None
    popen: subprocess.Popen[bytes] | None = None
    seen: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def look(self) -> list[int]:
        """Its processes now; all that were ever seen are remembered for the end."""
        found = descendants(self.pid) if self.popen and self.popen.poll() is None else []
        for pid in found:
            if (ticks := process_ticks(pid)) is not None:
                self.seen.setdefault(pid, ticks)
        return found

    def kill(self, *, with_its_runs: bool) -> None:
        """As when a process is killed, or its whole machine loses power."""
        pids = self.look()
        for pid in pids if with_its_runs else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self.popen is not None
        self.popen.wait(30)

    def stop(self, number: signal.Signals = signal.SIGTERM, wait_s: float = 15) -> None:
        if self.popen is None:
            return
        self.look()
        if self.popen.poll() is None:
            self.popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(wait_s)
        for pid, ticks in self.seen.items():
            if process_ticks(pid) == ticks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.popen.wait(30)


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; gives the URL for Prefect."""
    programs = postgres_bin()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="steelyard-pg-"))
    try:
        home.chmod(0o755)
        if user:
            shutil.chown(home, user, user)
        port, password = free_port(), secrets.token_hex(12)
        (home / "password").write_text(password)
        if user:
            shutil.chown(home / "password", user, user)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        command = [
            str(programs / "initdb"),
            "-D",
            str(home / "data"),
            "-U",
            "prefect",
            "-A",
            "scram-sha-256",
            "--pwfile",
            str(home / "password"),
        ]
        subprocess.run(
            [*command, "--no-sync"], env=environment, user=user, group=user, cwd="/", check=True, capture_output=True, timeout=60
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",  # the machine under it does not lose power here
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        server = Process("postgres", [str(programs / "postgres"), "-D", str(home / "data"), *flags], environment, home / "log", user)
        server.log.touch()
        server.start()
        try:
            until(lambda: "ready to accept connections" in server.log.read_text(), 30, "PostgreSQL")
            yield f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.stop(signal.SIGINT)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def redis(home: Path) -> Iterator[str]:
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    server = Process("redis", command, {"PATH": os.environ["PATH"]}, home / "redis.log")
    server.start()
    try:
        until(lambda: "Ready to accept connections" in server.log.read_text(), 30, "Redis")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.stop()


@dataclass
class Fleet:
    """Servers that share a database, and workers that share a pool; the first server is asked, workers are spread over all."""

    servers: list[Process]
    urls: list[str]
    workers: list[Process]
    environment: dict[str, str]

    @property
    def api(self) -> Api:
        return Api(self.urls[0])

    def python(self, *arguments: str, timeout: float = 180) -> None:
        """Run a module of ours to its end, against the first server."""
        environment = {**self.environment, "PREFECT_API_URL": self.urls[0]}
        done = subprocess.run(
            [sys.executable, "-m", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@contextmanager
def fleet(home: Path, config: Path, *, servers: int = 2, workers: int = 3, limit: int = 2, at_once: int = 6) -> Iterator[Fleet]:
    """All of it, up and with the deployments applied to the pool that the workers share. Everything is gone at the end."""
    with ExitStack() as stack:
        logs = home / "logs"
        logs.mkdir(parents=True)
        database = stack.enter_context(postgres())
        # As installed programs run, with their bytecode at hand: to compile our own modules for each run was a seventh of what a run takes.
        not_taken = ("XDG_", "PYTHONDONTWRITEBYTECODE")
        environment = {name: value for name, value in clean_environment().items() if not name.startswith(not_taken)}
        environment |= {
            "HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONPATH": str(ROOT),
            "STEELYARD_CONFIG": str(config),
            "STEELYARD_REDIS_URL": stack.enter_context(redis(home / "redis")),
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            # The shortest that Prefect allows: a machine that died is noticed within a minute and a half.
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            # Polls cost by the second and runs by the piece: on a busy machine, three workers that ask every two seconds took a fifth of the servers.
            "PREFECT_WORKER_QUERY_SECONDS": "4",
            "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
        }
        made = Fleet([], [], [], environment)
        for number in range(servers):
            port = free_port()
            url = f"http://127.0.0.1:{port}/api"
            command = [sys.executable, "-m", "deployments.fleet", "server", "--port", str(port)]
            server = Process(f"server {number}", command, environment, logs / f"server{number}.log")
            server.start()
            stack.callback(server.stop)
            # One after the other: the first makes the tables.
            until(lambda url=url: orchestrator.answers(url), 120, f"server {number}: {server.log.read_text()[-2000:]}")
            made.servers.append(server)
            made.urls.append(url)
        made.python("deployments.fleet", "apply", "--at-once", str(at_once))
        for number in range(workers):
            command = [sys.executable, "-m", "deployments.fleet", "worker", "--name", f"w{number}", "--limit", str(limit)]
            apart = {**environment, "PREFECT_API_URL": made.urls[number % servers]}
            worker = Process(f"worker {number}", command, apart, logs / f"worker{number}.log")
            worker.start()
            stack.callback(worker.stop)
            made.workers.append(worker)
        yield made
