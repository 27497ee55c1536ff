"""What Prefect costs: how soon a run by hand says something, what a nightly round over many models adds, how its database grows.

    python -m bench prefect                                   all three, a few minutes
    python -m bench prefect --only start --rounds 5
    python -m bench prefect --only round --models 200 1000
    python -m bench prefect --only runs --runs 1000 --json out/bench-runs.json

A real `steelyard up` (SQLite) on the loopback, with a home of its own; models of one small file each that need nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import as_installed  # noqa: E402

from steelyard.backup import backup  # noqa: E402
from steelyard.download import download  # noqa: E402
from steelyard.site import Site  # noqa: E402
from steelyard.standins.hub import LoopbackHub  # noqa: E402
from tests.prefect.conftest import Api, free_port, read_json, surroundings, until  # noqa: E402

SMALL_BYTES = 2_000
PROGRAM = [sys.executable, "-m", "steelyard"]


def fill(home: Path, hub: LoopbackHub, models: int) -> Path:
    """A machine that holds *models* models, in the store and in a folder as its replica; the config's path."""
    home.mkdir(parents=True)
    parts = [f'[store]\nmodels = "{home}/models"\nhf_home = "{home}/hf"\nmin_free = 0\n[hub]\nendpoint = "{hub.endpoint}"\n']
    for number in range(models):
        repo_id = f"bench/m{number:04}"
        hub.add_revision(repo_id, {"w.dat": b"w%07d" % number * (SMALL_BYTES // 8)})
        parts.append(f'[models.m{number:04}]\nrepo_id = "{repo_id}"\n')
    parts.append(f'[replicas.folder]\nkind = "mount"\npath = "{home}/replica"\nmount_point = false\n')
    config = home / "steelyard.toml"
    config.write_text("".join(parts))
    site = Site.open(config)
    for verb in (download, backup):
        report = verb(site)
        assert report.ok, report.errors[:3]
    return config


@contextmanager
def up(home: Path, config: Path) -> Iterator[tuple[Api, dict[str, str]]]:
    """`steelyard up`: its API, and the environment of commands that show there."""
    home.mkdir(parents=True)
    environment = surroundings(home)
    out = home / "up.out"
    with out.open("w") as stdout, (home / "up.err").open("w") as stderr:
        process = subprocess.Popen(
            [*PROGRAM, "up", "--port", str(free_port()), "--config", str(config), "--json"],
            cwd=home,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    try:
        api = Api(read_json(process, out)["results"][0]["api_url"])
        yield api, {**environment, "PREFECT_API_URL": api.url}
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def first_line(command: list[str], environment: dict[str, str], cwd: Path) -> tuple[float, float]:
    """Seconds until a command's first byte on stdout or stderr, and until its end."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    first = time.monotonic() - began
    process.stdout.read()
    process.wait()
    return first, time.monotonic() - began


def measure_start(home: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Start to first line of `steelyard verify`, with and without a server; medians."""
    found: dict[str, Any] = {}
    with LoopbackHub() as hub:
        config = fill(home / "one", hub, 1)
        with up(home / "up", config) as (_, environment):
            for name, arguments in (("without a server", ["--here"]), ("with a server", [])):
                times = [first_line([*PROGRAM, "verify", "--config", str(config), *arguments], environment, home) for _ in range(rounds)]
                found[name] = {
                    "first_line_s": round(statistics.median(first for first, _ in times), 2),
                    "slowest_first_line_s": round(max(first for first, _ in times), 2),
                    "whole_s": round(statistics.median(whole for _, whole in times), 2),
                }
                say(f"verify by hand, {name}: {found[name]}")
    return found


def measure_round(home: Path, models: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A nightly round over *models* models that need nothing: as a flow run, and what the same verbs take without Prefect."""
    with LoopbackHub() as hub:
        config = fill(home / f"m{models}", hub, models)
        with up(home / f"up{models}", config) as (api, environment):
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "flows.keep_models", "--config", str(config), "--json"],
                env=environment,
                cwd=home,
                capture_output=True,
                text=True,
            )
            whole_s = time.monotonic() - began
            assert done.returncode == 0, done.stderr[-2000:]
            run = until(lambda: found if (found := api.latest("keep-models"))["state_type"] == "COMPLETED" else None, 30, "the run's end")
            tasks = api.ask("/task_runs/count", {"flow_runs": {"id": {"any_": [run["id"]]}}})
            logs = len(api.logs(run["id"]))
        code = (
            "import sys; from pathlib import Path; from flows.keep_models import keep; from steelyard.site import Site\n"
            "from steelyard.steps import run_here; r = keep(Site.open(Path(sys.argv[1])), (), mend='report', run=run_here)\n"
            "assert r.ok; print(r.seconds)"
        )
        bare = subprocess.run([sys.executable, "-c", code, str(config)], env=environment, cwd=ROOT, capture_output=True, text=True)
        bare_s = float(bare.stdout.strip().splitlines()[-1])
    found = {
        "models": models,
        "seconds": round(whole_s, 1),
        "report_s": json.loads(done.stdout)["seconds"],
        "without_prefect_s": bare_s,
        "overhead_s": round(whole_s - bare_s, 1),
        "tasks": tasks,
        "log_lines": logs,
    }
    say(f"nightly round: {found}")
    return found


def measure_runs(home: Path, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The size of Prefect's database before and after *runs* nightly rounds over one model, in one process that makes one after the other."""
    code = (
        "import sys, logging; from pathlib import Path; from flows.engine import run_as_flow; from steelyard.verbs import Call\n"
        "for n in range(int(sys.argv[2])):\n"
        "    r = run_as_flow(Call('keep', Path(sys.argv[1]), {'models': (), 'repair': 'report'})); assert r.ok, r.errors\n"
    )
    with LoopbackHub() as hub:
        config = fill(home / "runs", hub, 1)
        with up(home / "upruns", config) as (api, environment):
            database = Path(environment["PREFECT_HOME"]) / "prefect.db"
            sizes = [(0, _size(database))]
            say(f"database at the start: {sizes[0][1]:,} bytes")
            began = time.monotonic()
            while sizes[-1][0] < runs:
                some = min(50, runs - sizes[-1][0])
                done = subprocess.run([sys.executable, "-c", code, str(config), str(some)], env=environment, cwd=ROOT, capture_output=True)
                assert done.returncode == 0, done.stderr[-2000:]
                # On a busy machine the API may have been asked in vain: what counts is what it has.
                sizes.append((api.ask("/flow_runs/count", {"flow_runs": {"deployment_id": {"is_null_": True}}}), _size(database)))
                say(f"after {sizes[-1][0]} runs, {time.monotonic() - began:.0f} s: {sizes[-1][1]:,} bytes")
            counts = {what: api.ask(f"/{what}/count", {}) for what in ("flow_runs", "task_runs", "artifacts")}
    found = {
        "runs": runs,
        "bytes_before": sizes[0][1],
        "bytes_after": sizes[-1][1],
        "bytes_a_run": round((sizes[-1][1] - sizes[0][1]) / runs),
        "seconds_a_run": round((time.monotonic() - began) / runs, 2),
        **counts,
    }
    say(f"database: {found}")
    return found


def _size(database: Path) -> int:
    """With what is still in the write-ahead log."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=("start", "round", "runs"))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a start")
    parser.add_argument("--models", type=int, nargs="+", default=[200], help="models of a nightly round")
    parser.add_argument("--runs", type=int, default=200, help="runs for the database's size")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", type=Path)
    options, _ = parser.parse_known_args()
    as_installed()
    found: dict[str, Any] = {}

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(dir=options.dir, prefix="steelyard-bench-") as folder:
        home = Path(folder)
        if options.only in (None, "start"):
            found["start"] = measure_start(home / "start", options.rounds, say)
        if options.only in (None, "round"):
            found["rounds"] = [measure_round(home / "round", models, say) for models in options.models]
        if options.only in (None, "runs"):
            found["runs"] = measure_runs(home / "runs", options.runs, say)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
