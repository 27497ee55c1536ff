"""What one contender took: wall and CPU seconds, and peak memory of the programs it ran. The same for every bench."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """CPU seconds, user and system, of this process and of the programs it waited for; *peak_mib* of the largest of those programs, 0 where none ran."""

    wall_s: float
    cpu_s: float
    peak_mib: float


COSTS: dict[str, list[Cost]] = {}
"""Of every contender, round by round; a bench writes them beside its seconds."""
_peaks: list[int] = []


def as_installed() -> None:
    """From here on programs run as installed ones do, with their bytecode at hand, whatever the shell of the bench asks of Python; peers that came
    as wheels (`bench peers`) are found beside this Python.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def run(folder: Path, *command: str, env: Mapping[str, str] | None = None, codes: tuple[int, ...] = (0,)) -> None:
    """Run a program and note its peak memory. :raises SystemExit: with its output, when it fails."""
    with tempfile.TemporaryFile() as output:
        # Popen and wait4, not run: only wait4 tells what this child used and not the largest of all.
        child = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        _peaks.append(used.ru_maxrss)
        if child.returncode not in codes:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{output.read().decode(errors='replace')}")


def seconds(work: Callable[[], object], name: str = "") -> float:
    """Wall seconds of *work*; its cost is kept under *name*."""
    _peaks.clear()
    before, began = _cpu_s(), time.perf_counter()
    work()
    wall_s = time.perf_counter() - began
    if name:
        COSTS.setdefault(name, []).append(Cost(wall_s, _cpu_s() - before, max(_peaks, default=0) / 1024))
    return wall_s


def _cpu_s() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def seen(peak_mib: float) -> float | None:
    """A peak that can be told: a child begins with the memory of its parent at the fork, so a smaller one can't."""
    floor_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return peak_mib if peak_mib > floor_mib + 1 else None


def costs_as_json() -> dict[str, dict[str, float | None]]:
    """The median CPU seconds and the largest peak of each contender, None where that can't be told."""
    import statistics

    return {
        name: {"cpu_s": statistics.median(one.cpu_s for one in costs), "peak_mib": seen(max(one.peak_mib for one in costs))}
        for name, costs in COSTS.items()
    }


def flip_one_byte(path: Path, at: int) -> None:
    """Rot, made to last."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())
