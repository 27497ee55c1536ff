"""A stop is seen within ten seconds in each phase of each verb, and the same command then goes on to its end.

A phase is made long by strace, which delays the system calls that it makes: nothing of the program is changed for the test. SIGTERM is what
`kill`, systemd and a cancel in the Prefect UI send (tests/prefect/test_cancel.py has the way from its button to here).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.download import download
from steelyard.verify import verify
from tests.conftest import FILE, World
from tests.fleet.conftest import bucket

__all__ = ["bucket"]

WITHIN_S = 10.0
READ = "preadv,preadv2"
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")


@dataclass(frozen=True)
class Phase:
    """*command* is stopped once *calls* of *syscall* were made on a file whose path has *where* in it, each of them *delay_ms* long."""

    command: str
    syscall: str
    where: str = ""
    delay_ms: int = 100
    calls: int = 2
    before: Callable[[World], None] = lambda world: None
    weights_only: bool = False
    """Delay calls on the store's weights alone, and not those on locks and records."""


def _lose(world: World) -> None:
    world.weights.unlink()


def _rot(world: World) -> None:
    world.flip(world.weights, 9_000_000)


def _forget_replica(world: World) -> None:
    shutil.rmtree(world.usb)


def _forget_cache(world: World) -> None:
    shutil.rmtree(world.home / "hf")


def _forget_records(world: World) -> None:
    shutil.rmtree(world.models / ".steelyard")
    shutil.rmtree(world.home / "hf")


PHASES = {
    "download: proving what lies there": Phase("download", READ, FILE, before=_forget_records),
    "download: filling the hub cache": Phase("download", "pwrite64", "hf", before=_forget_cache),
    "verify: reading the store": Phase("verify", READ, FILE),
    "verify: reading a replica from the medium": Phase("verify --copy usb", READ, FILE),
    "scrub: reading": Phase("scrub", READ, FILE),
    "backup: reading the source": Phase("backup", READ, FILE, before=_forget_replica),
    "backup: writing": Phase("backup", "pwrite64", "usb", before=_forget_replica),
    "backup: making it last": Phase("backup", "fsync", "usb", delay_ms=1500, calls=1, before=_forget_replica),
    "restore: writing": Phase("restore mvdream --from usb", "pwrite64", "models", before=_lose),
    "repair: judging": Phase("repair", READ, FILE, before=_rot),
    "repair: mending": Phase("repair", "pwrite64", FILE, calls=1, delay_ms=800, before=_rot, weights_only=True),
    "drill: restoring": Phase("drill", "pwrite64", "", before=lambda world: None),
    "load: in the child": Phase("load", "openat", "torch", delay_ms=4, calls=30),
}


@pytest.fixture
def kept(world: World) -> World:
    assert download(world.site()).ok
    assert backup(world.site()).ok
    return world


@pytest.mark.parametrize("name", PHASES)
def test_a_stop_is_seen_in_each_phase_and_the_next_run_goes_on(kept: World, name: str) -> None:
    stop_and_go_on(kept, PHASES[name])


FAR = {
    "backup: sending": Phase("backup --to s3", "sendto,sendmsg", "TCP", delay_ms=200, calls=3),
    "restore: receiving": Phase("restore mvdream --from s3", "recvfrom,recvmsg", "TCP", delay_ms=60, calls=12, before=_lose),
}


@pytest.mark.s3
@pytest.mark.parametrize("name", FAR)
def test_a_stop_is_seen_while_a_bucket_is_written_or_read(world: World, bucket: str, name: str) -> None:
    world.configure(bucket.replace('prefix = "m"', f'prefix = "{world.home.name[-20:]}"'))
    world.environment |= {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    assert download(world.site()).ok
    if name.startswith("restore"):
        assert backup(world.site()).ok
    stop_and_go_on(world, FAR[name])


def stop_and_go_on(kept: World, phase: Phase) -> None:
    """Run the command slowed down, stop it within the phase, see it end in time, and see the next one get all done."""
    phase.before(kept)
    trace = kept.home / "trace"
    inject = f"inject={phase.syscall}:delay_enter={phase.delay_ms}ms"
    strace = ["strace", "-f", "-yy", "-qq", "-o", str(trace), "-e", f"trace={phase.syscall}", "-e", inject, "-e", "signal=none"]
    strace += ["-P", str(kept.weights)] if phase.weights_only else []
    process = subprocess.Popen(
        [*strace, sys.executable, "-m", "steelyard", *phase.command.split(), "--here", "--json"],
        cwd=kept.home,
        env=kept.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _await(process, trace, phase)
        os.kill(_program(process.pid), signal.SIGTERM)
        began = time.monotonic()
        output, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - began
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 130, output + errors
    assert seconds < WITHIN_S
    assert "Traceback" not in errors, errors
    done = kept.run(*phase.command.split(), "--here")
    assert done.code == 0, done.stdout
    for copy in [copy for copy in kept.site().copies if copy != "usb" or kept.usb.exists()]:
        assert verify(kept.site(), copy=copy).exit_code == 0
    assert list(kept.models.rglob("*.partial")) == [], "nothing half-way is left"


def _await(process: subprocess.Popen[str], trace: Path, phase: Phase) -> None:
    """Until the phase is under way. :raises AssertionError: when the command ended before."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if trace.exists():
            lines = [line for line in trace.read_text(errors="replace").splitlines() if phase.where in line]
            if len(lines) >= phase.calls:
                return
        assert process.poll() is None, f"it ended before that phase: {process.communicate()}"
        time.sleep(0.02)
    raise AssertionError("the phase never began")


def _program(strace: int) -> int:
    """The process that strace started."""
    (child,) = Path(f"/proc/{strace}/task/{strace}/children").read_text().split()
    return int(child)
