"""Verify warm and cold, and repair of one byte, beside hashlib, sha256sum and cat on the same file in the same run.

    python bench/bench_verify.py --gib 4 --rounds 3 --dir /some/disk --json out/bench-verify.json

Contenders take turns (A B C A B C …); medians. *steelyard* is the whole command, start-up and report included; *engine* is the judging alone, in process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from measure import as_installed, costs_as_json, flip_one_byte, run, seconds

from steelyard.copies.base import Look
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

REPO, FILE = "bench/large", "model.bin"
PROGRAM = [sys.executable, "-m", "steelyard"]


def make_file(path: Path, size: int) -> None:
    """Random bytes, a MiB of them again and again with a counter in front: quick to make, and no two pieces are alike."""
    noise = os.urandom(1 << 20)
    with path.open("wb") as out:
        for number in range(size >> 20):
            out.write(number.to_bytes(8, "big") + noise[8:])


def fill(home: Path, size: int) -> None:
    """A store with one file of *size* bytes, by a real download."""
    source = home / "source.bin"
    make_file(source, size)
    with LoopbackHub() as hub:
        hub.add_revision(REPO, {FILE: source})
        text = f'[store]\nmodels = "{home}/models"\nhf_home = "{home}/hf"\nmin_free = "1 MB"\n[hub]\nendpoint = "{hub.endpoint}"\n'
        (home / "steelyard.toml").write_text(f'{text}[models.large]\nrepo_id = "{REPO}"\ndir = "."\n')
        subprocess.run([*PROGRAM, "download", "--json"], cwd=home, check=True, capture_output=True)
    source.unlink()


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    with path.open("rb") as file, open(os.devnull, "wb") as sink:
        shutil.copyfileobj(file, sink, 1 << 22)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", type=Path)
    asked, _ = parser.parse_known_args()
    as_installed()
    size = int(asked.gib * (1 << 30)) >> 20 << 20
    with tempfile.TemporaryDirectory(dir=asked.dir, prefix="steelyard-bench-") as folder:
        home = Path(folder)
        fill(home, size)
        path = home / "models" / FILE
        site = Site.open(home / "steelyard.toml")
        locked = site.locked_model("large")
        assert locked is not None
        manifest = site.manifest("large", locked.commit)
        entry = manifest[FILE]

        def engine(cold: bool) -> None:
            assert site.store.judge(manifest, entry, Look(cold=cold)).ok

        def hashlib_digest() -> None:
            import hashlib

            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

        def repair_one_byte() -> float:
            flip_one_byte(path, size // 2)
            warm(path)
            return seconds(lambda: run(home, *PROGRAM, "repair", "--json"))

        warm_ones: dict[str, Callable[[], object]] = {
            "engine": lambda: engine(False),
            "steelyard verify": lambda: run(home, *PROGRAM, "verify", "--json"),
            "hashlib sha256": hashlib_digest,
            "cat": lambda: run(home, "cat", str(path)),
        }
        if shutil.which("sha256sum"):
            warm_ones["sha256sum"] = lambda: run(home, "sha256sum", str(path))
        cold_ones: dict[str, Callable[[], object]] = {"engine": lambda: engine(True), "cat": lambda: run(home, "cat", str(path))}
        took: dict[str, list[float]] = {}
        for _ in range(asked.rounds):
            for name, work in warm_ones.items():
                warm(path)
                took.setdefault(f"warm {name}", []).append(seconds(work, f"warm {name}"))
            for name, work in cold_ones.items():
                drop(path)
                took.setdefault(f"cold {name}", []).append(seconds(work, f"cold {name}"))
            took.setdefault("repair one byte", []).append(repair_one_byte())
    median = {name: statistics.median(times) for name, times in took.items()}
    ratios = {
        "speed over hashlib sha256 (wanted: 4 or more)": median["warm hashlib sha256"] / median["warm engine"],
        "speed over cat, warm (wanted: 0.8 or more)": median["warm cat"] / median["warm engine"],
        "speed over cat, cold (wanted: 0.9 or more)": median["cold cat"] / median["cold engine"],
        "repair minus one verify [s] (wanted: 2 or less)": median["repair one byte"] - median["warm steelyard verify"],
    }
    print(f"{size / (1 << 30):g} GiB, {len(os.sched_getaffinity(0))} cores, medians of {asked.rounds}, threads {threading.active_count()}")
    for name, value in median.items():
        print(f"  {name:24} {value:8.2f} s  {size / value / 1e9:6.2f} GB/s")
    for name, value in ratios.items():
        print(f"  {name}: {value:.2f}")
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"size_bytes": size, "seconds": took, "ratios": ratios, "costs": costs_as_json()}, indent=1))


if __name__ == "__main__":
    main()
