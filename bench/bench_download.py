"""Download and proof of one large file from a stand-in Hub in a process of its own: steelyard, `hf download` + `hf cache verify`, `curl -L`.

    python bench/bench_download.py --gib 2 --rounds 3 --dir /some/disk --json out/bench-download.json

The contenders take turns (A B C A B C …), each into an empty folder on the same disk, after a sync; medians and ratios are of the same run.
Wall seconds, CPU seconds of the contender (its children included, the Hub's not) and its peak memory. A machine that is busy with other things
moves all of them; compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import as_installed

BIN = Path(sys.executable).parent
REPO, FILE = "bench/large", "model.bin"


@dataclass(frozen=True)
class Took:
    """One run of one contender."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def timed(commands: list[list[str]], env: dict[str, str]) -> Took:
    """Run *commands* one after the other. :raises SystemExit: with the output, when one fails."""
    os.sync()
    began, cpu_s, peak = time.monotonic(), 0.0, 0
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 1024  # a child begins with its parent's: a smaller peak can't be told
    for command in commands:
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                output.seek(0)
                raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{output.read().decode(errors='replace')}")
        cpu_s, peak = cpu_s + used.ru_utime + used.ru_stime, max(peak, used.ru_maxrss if used.ru_maxrss > own else 0)
    return Took(round(time.monotonic() - began, 3), round(cpu_s, 3), round(peak / 1024, 1))


@contextmanager
def hub_of(root: Path) -> Iterator[str]:
    """A stand-in Hub over the folder in a process of its own; its endpoint."""
    child = subprocess.Popen([sys.executable, "-m", "steelyard.standins.hub", "--root", str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()


def make_file(path: Path, size_bytes: int) -> None:
    """Bytes that no file system compresses or shares."""
    path.parent.mkdir(parents=True)
    block = bytearray(random.Random(1).randbytes(16 << 20))
    with path.open("wb") as out:
        for number in range(0, size_bytes, len(block)):
            block[:8] = number.to_bytes(8, "little")
            out.write(block[: min(len(block), size_bytes - number)])


def steelyard(folder: Path, endpoint: str, views: str) -> Took:
    config = folder / "steelyard.toml"
    config.write_text(
        f'[store]\nmodels = "{folder}/models"\nhf_home = "{folder}/hf"\nviews = "{views}"\nmin_free = 0\n'
        f'[hub]\nendpoint = "{endpoint}"\n[models.large]\nrepo_id = "{REPO}"\n'
    )
    return timed([[str(BIN / "steelyard"), "download", "--config", str(config), "--here"]], {"HF_HOME": str(folder / "hf")})


def hf(folder: Path, endpoint: str) -> Took:
    env = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return timed([[str(BIN / "hf"), "download", REPO, FILE], [str(BIN / "hf"), "cache", "verify", REPO]], env)


def curl(folder: Path, endpoint: str) -> Took:
    command = ["curl", "-sSfL", "-o", str(folder / FILE), f"{endpoint}/{REPO}/resolve/main/{FILE}"]
    return timed([command], {})


def measure(options: argparse.Namespace, work: Path) -> dict[str, list[Took]]:
    """Every contender *rounds* times, in turns; the first turn warms the file's pages up and is not counted."""
    make_file(work / "repos" / REPO / FILE, int(options.gib * (1 << 30)))
    with hub_of(work / "repos") as endpoint:
        contenders: dict[str, Callable[[Path], Took]] = {
            "steelyard (views = hardlink)": lambda folder: steelyard(folder, endpoint, "hardlink"),
            "steelyard (views = copy)": lambda folder: steelyard(folder, endpoint, "copy"),
            "hf download + hf cache verify": lambda folder: hf(folder, endpoint),
            "curl -L (no proof)": lambda folder: curl(folder, endpoint),
        }
        wanted = {name: run for name, run in contenders.items() if not options.only or any(one in name for one in options.only)}
        took: dict[str, list[Took]] = {name: [] for name in wanted}
        for turn in range(options.rounds + 1):
            for name, run in wanted.items():
                folder = work / "run"
                folder.mkdir()
                try:
                    one = run(folder)
                finally:
                    shutil.rmtree(folder)
                if turn or not options.rounds:
                    took[name].append(one)
                    print(f"{name}: {one.wall_s:.2f} s, CPU {one.cpu_s:.2f} s, {one.peak_mib:.0f} MiB", file=sys.stderr, flush=True)
    return took


def summed(took: dict[str, list[Took]]) -> dict[str, dict[str, float]]:
    medians = {
        name: {
            "wall_s": statistics.median(one.wall_s for one in runs),
            "cpu_s": statistics.median(one.cpu_s for one in runs),
            "peak_mib": max(one.peak_mib for one in runs),
        }
        for name, runs in took.items()
    }
    for facts in list(medians.values()):
        for name, other in medians.items():
            facts[f"of {name.split(' ')[0]}"] = round(facts["wall_s"] / other["wall_s"], 2)
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of every contender")
    parser.add_argument("--dir", type=Path, default=None, help="where to work; the disk that is measured")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there too")
    parser.add_argument("--only", nargs="*", default=[], help="contenders whose name contains one of these")
    options = parser.parse_args()
    as_installed()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-download-") as folder:
        took = measure(options, Path(folder))
    medians = summed(took)
    print(
        f"\n{options.gib:g} GiB, median of {options.rounds}\n{'':32} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9} {'of hf':>7} {'of curl':>8}"
    )
    for name, facts in medians.items():
        ratios = [f"{facts[key]:.2f}" if key in facts else "-" for key in ("of hf", "of curl")]
        print(f"{name:32} {facts['wall_s']:8.2f} {facts['cpu_s']:8.2f} {facts['peak_mib']:9.0f} {ratios[0]:>7} {ratios[1]:>8}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        runs = {name: [asdict(one) for one in all_of] for name, all_of in took.items()}
        options.json.write_text(json.dumps({"gib": options.gib, "rounds": options.rounds, "medians": medians, "runs": runs}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
