"""`make torture`: faults by the thousand, bounded, seeded and resumable; prints counts, and the seed of each failure.

python -m torture --minutes 25 --jobs 2 --seed 7 --state out/torture.json
python -m torture --only "point/update/kill before/17/7"       one failure again, by the name that was printed
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.driver import Driver, Tally
from torture.rules import Broken
from torture.scenes import SCENES
from torture.shim import KILLS, REFUSABLE
from torture.walk import Walk
from torture.world import scratch_place

WHATS = (*KILLS, *REFUSABLE)
WALK_EVERY = 12
"""After so many points comes a walk."""


def tasks(driver: Driver, seed: int) -> Iterator[str]:
    """Names of tasks, without end: every call of every scene with every fault, in an order that the seed shuffles, with walks between; then walks alone.

    A scene's calls are counted when it first comes up.
    """
    rng = random.Random(seed)
    open_ones = [(scene, what) for scene in driver.scenes() for what in WHATS]
    left: dict[tuple[str, str], list[int]] = {}
    walks = (f"walk/{seed * 1_000_000 + number}" for number in itertools.count())
    for number in itertools.count():
        if number % WALK_EVERY == 0 or not open_ones:
            yield next(walks)
            continue
        scene, what = rng.choice(open_ones)
        key = (scene.name, what)
        if key not in left:
            left[key] = list(range(1, driver.count(scene, what) + 1))
            rng.shuffle(left[key])
        if left[key]:
            yield f"point/{scene.name}/{what}/{left[key].pop()}/{seed}"
        else:
            open_ones.remove((scene, what))


def one(driver: Driver, name: str) -> None:
    """Run the task called *name*. :raises Broken:"""
    kind, _, rest = name.partition("/")
    if kind == "walk":
        Walk(driver, int(rest)).go()
        return
    scene_name, what, at, seed = rest.split("/")
    scene = next(scene for scene in SCENES if scene.name == scene_name)
    driver.count(scene, "kill before")
    driver.point(scene, what, int(at), hash_of(name, int(seed)))


def hash_of(name: str, seed: int) -> int:
    return random.Random(f"{name} {seed}").getrandbits(60)


def work(asked: argparse.Namespace) -> dict[str, Any]:
    """One worker's share until the time is over. A broken invariant is kept and the work goes on, in a new world."""
    until = time.monotonic() + asked.minutes * 60
    state = Path(f"{asked.state}.{asked.worker}") if asked.state else None
    done: set[str] = set(state.read_text().splitlines()) if state and state.exists() else set()
    failures: list[dict[str, str]] = []
    tally = Tally()
    driver = Driver(scratch_place(asked.dir), world_seed=asked.seed, drive=False if asked.no_drive else None)
    judged = 0
    with driver:
        driver.tally = tally
        share = [asked.only] if asked.only else itertools.islice(tasks(driver, asked.seed), asked.worker, None, asked.jobs)
        for name in share:
            if time.monotonic() > until:
                break
            if name in done and not asked.only:
                continue
            try:
                one(driver, name)
            except Broken as broken:
                failures.append({"task": name, "why": str(broken)})
                print(f"BROKEN {name}\n  {broken}\n", file=sys.stderr, flush=True)
                if len(failures) >= asked.max_failures:
                    break
            done.add(name)
            if state:
                with state.open("a") as file:
                    file.write(name + "\n")
        judged = driver.oracle.bytes_judged
        counts = {scene: sum(calls.values()) for scene, calls in driver.calls.items()}
    tally.bytes_judged = judged
    return {"tally": tally.as_json(), "failures": failures, "tasks": len(done), "calls": counts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="workers, each with a world of its own")
    parser.add_argument("--state", type=Path, help="where done tasks are noted; a later run with the same seed and jobs goes on there")
    parser.add_argument("--json", type=Path, help="write the report there too")
    parser.add_argument("--dir", type=Path, help="where the worlds lie; memory (/dev/shm) where there is room")
    parser.add_argument("--only", default="", help="run this one task")
    parser.add_argument("--no-drive", action="store_true", help="no loop mount, root or not")
    parser.add_argument("--max-failures", type=int, default=20)
    parser.add_argument("--worker", type=int, default=-1, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if asked.worker >= 0 or asked.only or asked.jobs == 1:
        asked.worker = max(asked.worker, 0)
        report = work(asked)
        print(json.dumps(report), flush=True) if asked.jobs > 1 and not asked.only else show(asked, [report])
        return 1 if report["failures"] else 0
    if asked.state:
        asked.state.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torture", *sys.argv[1:]]
    workers = [subprocess.Popen([*command, "--worker", str(number)], stdout=subprocess.PIPE, text=True) for number in range(asked.jobs)]
    reports = []
    try:
        for worker in workers:
            text = worker.communicate()[0]
            if not text.strip():
                print(f"a worker ended with {worker.returncode} and said nothing", file=sys.stderr)
                return 1
            reports.append(json.loads(text.splitlines()[-1]))
    finally:
        for worker in workers:
            worker.terminate()  # each unmounts its drive and removes its world
    return show(asked, reports)


def show(asked: argparse.Namespace, reports: list[dict[str, Any]]) -> int:
    """Print the sum; exit code."""
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for report in reports:
        total.update({key: value for key, value in report["tally"].items() if isinstance(value, int)})
        kinds.update(report["tally"]["kills"])
        kinds.update(report["tally"]["faults"])
    failures = [failure for report in reports for failure in report["failures"]]
    print(f"seed {asked.seed}, {asked.jobs} workers: {sum(report['tasks'] for report in reports):,} tasks, {total['runs']:,} runs of verbs")
    print(f"  kill points  {total['kill_points']:>9,}")
    print(f"  other faults {total['other_faults']:>9,}")
    print(f"  bytes judged {total['bytes_judged']:>9,}")
    for name, count in sorted(kinds.items(), key=lambda pair: -pair[1]):
        print(f"    {count:>7,}  {name}")
    print(f"  broken invariants: {len(failures)}")
    for failure in failures:
        print(f'    python -m torture --seed {asked.seed} --only "{failure["task"]}"\n      {failure["why"].splitlines()[0][:300]}')
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"seed": asked.seed, "totals": total, "kinds": kinds, "failures": failures}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
