"""Out of one machine: the same flows and the same prefect.yaml, behind PostgreSQL, Redis and as many servers and workers as are wanted.

    python -m deployments.fleet server [--host H] [--port P]        one of the servers; all share a database and a Redis
    python -m deployments.fleet worker --pool NAME [--limit N]      one of the workers, on the machine that has the store
    python -m deployments.fleet apply --pool NAME [--type T]        prefect.yaml for that pool: nightly-NAME, on-demand-NAME, …
    python -m deployments.fleet environment                         the servers' settings, as NAME=value lines for a container

Each is one process of Prefect's own, for systemd, a container or Kubernetes to keep running. docs/fleet.md has the whole picture.

The servers need PREFECT_API_DATABASE_CONNECTION_URL (postgresql+asyncpg://…) and STEELYARD_REDIS_URL (redis://…); workers and apply
need PREFECT_API_URL, and PREFECT_API_AUTH_STRING where the servers have a password.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import socket
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deployments.up import HOME, POOL, PREFECT_YAML, is_loopback, port_of, surroundings
from steelyard.config import config_path
from steelyard.errors import Refused, SteelyardError, UsageError
from steelyard.terminal import show_error

TYPES = ("process", "kubernetes")
KUBERNETES_JOB = Path(__file__).with_name("kubernetes-job.json")


def shared_settings(redis_url: str) -> dict[str, str]:
    """What every server of a fleet is told: all that one server keeps in its memory lies in Redis instead."""
    return {
        "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
        "PREFECT_REDIS_MESSAGING_URL": redis_url,
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": redis_url,
        # The services of all servers share their work through it, so that each of them may die.
        "PREFECT_SERVER_DOCKET_URL": redis_url,
    }


def server_environment(host: str, port: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """:raises UsageError: when something is missing that two servers must share. :raises Refused: when others could reach it unasked."""
    database, redis = base.get("PREFECT_API_DATABASE_CONNECTION_URL", ""), base.get("STEELYARD_REDIS_URL", "")
    if not database.startswith("postgresql"):
        raise UsageError(
            why="servers of a fleet share a PostgreSQL database, and PREFECT_API_DATABASE_CONNECTION_URL names none",
            hint="set it to postgresql+asyncpg://user:password@host:5432/prefect; for one machine: steelyard up",
        )
    if not redis.startswith(("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://")):
        raise UsageError(why="servers of a fleet share a Redis, and STEELYARD_REDIS_URL names none", hint="set it to redis://host:6379/0")
    if importlib.util.find_spec("prefect_redis") is None:
        raise UsageError(why="prefect-redis is not installed", hint="run: pip install 'steelyard[fleet]'")
    if not is_loopback(host) and not base.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise Refused(
            why=f"{host} can be reached by others, and the API has no password",
            hint="set PREFECT_SERVER_API_AUTH_STRING=user:password, on every server the same",
        )
    return {**surroundings(host, port, config_path(), base), **shared_settings(redis)}


def worker_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """:raises UsageError: without PREFECT_API_URL."""
    api_url = base.get("PREFECT_API_URL", "")
    if not api_url:
        raise UsageError(why="PREFECT_API_URL is not set", hint="set it to the address of the servers, http://…:4200/api")
    environment = {**surroundings("127.0.0.1", 0, config_path(), base), "PREFECT_API_URL": api_url}
    for name in ("PREFECT_SERVER_API_HOST", "PREFECT_SERVER_API_PORT"):
        del environment[name]
    return environment


def for_pool(content: dict[str, Any], pool: str, at_once: int = 1) -> dict[str, Any]:
    """prefect.yaml as it is for another pool: every deployment once more under a name of its own, so that each machine has its own nightly.

    The pool that prefect.yaml names keeps its names. *at_once*: runs of one deployment at the same time, where workers share a pool.
    """
    suffix = "" if pool == POOL else f"-{pool.removeprefix(f'{POOL}-')}"
    made = {key: value for key, value in content.items() if key != "definitions"}
    made["pull"] = [{"deployments.catalogue.bring": {}}, *content["pull"]]
    made["deployments"] = [
        {
            **one,
            **({"schedules": [_spread(schedule, pool) for schedule in one["schedules"]]} if suffix and "schedules" in one else {}),
            "name": f"{one['name']}{suffix}",
            "tags": [*one["tags"], *([f"pool:{pool}"] if suffix else [])],
            "work_pool": {**one["work_pool"], "name": pool},
            "concurrency_limit": {**one["concurrency_limit"], "limit": at_once},
        }
        for one in content["deployments"]
    ]
    return made


def _spread(schedule: dict[str, Any], pool: str) -> dict[str, Any]:
    """In the same hour, at a minute that the pool's name decides: a hundred machines must not all begin at 02:30."""
    minute, _, rest = str(schedule["cron"]).partition(" ")
    assert minute.isdigit(), "prefect.yaml's schedules name one minute"
    return {**schedule, "cron": f"{zlib.crc32(pool.encode()) % 60} {rest}"}


def apply(pool: str, kind: str, at_once: int) -> int:
    """Make the pool, and apply prefect.yaml and the automations for it. The exit code of `prefect deploy`."""
    from deployments.apply import apply_all

    template = json.loads(KUBERNETES_JOB.read_text(encoding="utf-8")) if kind == "kubernetes" else None
    with tempfile.TemporaryDirectory(prefix="steelyard-") as folder:
        path = Path(folder) / "prefect.yaml"
        wanted = for_pool(yaml.safe_load(PREFECT_YAML.read_text(encoding="utf-8")), pool, at_once)
        path.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")
        return apply_all(path, pool, kind, template, fleet=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.fleet", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server", help="run one of the servers")
    server.add_argument("--host", default=os.environ.get("PREFECT_SERVER_API_HOST") or "127.0.0.1")
    server.add_argument("--port", default=os.environ.get("PREFECT_SERVER_API_PORT") or "4200")
    worker = commands.add_parser("worker", help="run a worker of a pool")
    worker.add_argument("--pool", type=_pool, default=POOL)
    worker.add_argument("--name", default=f"steelyard-{socket.gethostname()}")
    worker.add_argument("--limit", type=int, default=2, help="runs at once on this machine")
    applied = commands.add_parser("apply", help="declare a pool and its deployments")
    applied.add_argument("--pool", type=_pool, default=POOL)
    applied.add_argument("--type", choices=TYPES, default="process")
    applied.add_argument("--at-once", type=int, default=1, help="runs of one deployment at the same time")
    commands.add_parser("environment", help="the servers' settings as NAME=value lines; no passwords among them")
    options = parser.parse_args(argv)
    prefect = [sys.executable, "-m", "prefect"]
    try:
        if options.command == "environment":
            sys.stdout.writelines(f"{name}={value}\n" for name, value in shared_settings("$STEELYARD_REDIS_URL").items())
            return 0
        if options.command == "apply":
            os.environ.update(worker_environment())
            return apply(options.pool, options.type, options.at_once)
        if options.command == "server":
            port = port_of(options.port, "--port (or PREFECT_SERVER_API_PORT)")
            environment = server_environment(options.host, port)
            # Not --no-services: any server may die, and schedules and automations go on.
            command = [*prefect, "server", "start", "--host", options.host, "--port", str(port)]
        else:
            environment = worker_environment()
            command = [*prefect, "worker", "start", "--pool", options.pool, "--name", options.name, "--limit", str(options.limit)]
    except SteelyardError as error:
        show_error(error)
        return error.exit_code
    os.chdir(HOME)
    return os.execve(sys.executable, command, environment)  # noqa: S606


def _pool(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise argparse.ArgumentTypeError("a pool's name has a-z, 0-9 and hyphens")
    return text


if __name__ == "__main__":
    sys.exit(main())
