"""A process with the product loaded that forks: each run of a verb then costs its work and not its start-up.

Reads one JSON line a request (a list of jobs, all started at once), writes one JSON line with their outcomes. It has one thread and runs no verb itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

TIMEOUT_S = 60.0


class Zygote:
    """The driver's end: start it, hand it jobs, read what came of them. Use as a context manager."""

    def __init__(self, environment: dict[str, str], piece_bytes: int) -> None:
        self._environment = environment | {"STEELYARD_TORTURE_PIECE_BYTES": str(piece_bytes)}

    def __enter__(self) -> Zygote:
        here = str(Path(__file__).resolve().parents[1])
        environment = self._environment | {"PYTHONPATH": here}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=here
        )
        return self

    def run(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the zygote ended with {self._process.wait()}")
        told: list[dict[str, Any]] = json.loads(answer)
        return told

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def preload(piece_bytes: int) -> None:
    """Everything that the verbs import, with small pieces: a world of a few MB then has files of several."""
    import awscrt.checksums
    import boto3  # noqa: F401
    import huggingface_hub
    import huggingface_hub.hf_api

    import steelyard.adopt
    import steelyard.backup
    import steelyard.checkpoint.inspect
    import steelyard.clean
    import steelyard.cli
    import steelyard.copies.mount
    import steelyard.copies.s3
    import steelyard.copies.s3_upload
    import steelyard.download
    import steelyard.drill
    import steelyard.fetch
    import steelyard.repair
    import steelyard.scrub
    import steelyard.status
    import steelyard.target
    import steelyard.update
    import steelyard.updates
    import steelyard.verify  # noqa: F401
    from steelyard import pieces

    _ = (awscrt.checksums.crc64nvme, huggingface_hub.HfApi)
    pieces.PIECE_BYTES = piece_bytes


def main() -> None:
    preload(int(os.environ.pop("STEELYARD_TORTURE_PIECE_BYTES")))
    gc.freeze()
    for line in sys.stdin:
        jobs = json.loads(line)
        running = {_start(job): (number, job, time.monotonic()) for number, job in enumerate(jobs)}
        outcomes: list[dict[str, Any]] = [{} for _ in jobs]
        while running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child in running:
                number, job, began = running.pop(child)
                outcomes[number] = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}
                continue
            for pid, (_, job, began) in running.items():
                over = time.monotonic() - began
                if over > job.get("kill_after_s", TIMEOUT_S):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        print(json.dumps(outcomes), flush=True)


def _start(job: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _run(job)
        except BaseException as error:  # noqa: BLE001 - told to the driver, which calls it a broken invariant
            import traceback

            Path(job["out"]).with_suffix(".traceback").write_text("".join(traceback.format_exception(error)))
        finally:
            os._exit(code)
    return child


def _run(job: dict[str, Any]) -> int:
    from torture.shim import Plan, Shim

    os.chdir(job["cwd"])
    os.environ.update(job.get("environment", {}))
    out, log = (
        os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        os.open(job["out"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
    )
    quiet = os.open(os.devnull, os.O_RDONLY)
    for fd, standard in ((quiet, 0), (out, 1), (log, 2)):
        os.dup2(fd, standard)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shim = Shim(Plan.from_json(job["plan"]))
    shim.arm()
    from steelyard.cli import main as steelyard

    code = 0
    try:
        for arguments in job["commands"]:
            try:
                steelyard([*arguments, "--json", "--here"])
            except SystemExit as end:
                code = code or int(end.code or 0)
            sys.stdout.write("\n\x1e\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        facts = {"seen": shim.seen, "hit": shim.hit, "trace": shim.trace if job.get("trace") else []}
        Path(job["out"] + ".facts").write_text(json.dumps(facts))
    return code


def _stream(fd: int) -> IO[str]:
    return os.fdopen(fd, "w", buffering=1, encoding="utf-8", closefd=False)


if __name__ == "__main__":
    main()
