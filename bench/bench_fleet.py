"""Runs on a fleet whose workers, machines, runs and a server are killed at random: is anything lost, or done twice?

    python -m bench fleet --runs 200 --kills 12

PostgreSQL, Redis, two servers and three workers as processes on the loopback; needs what tests/fleet/test_machines.py needs. Some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fleet.proof import prove
from tests.fleet.room import what_is_missing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--within", type=float, default=3600.0, help="longest wait, in seconds")
    parser.add_argument("--json", type=Path)
    options, _ = parser.parse_known_args()
    if why := what_is_missing():
        sys.stdout.write(f"fleet: skipped, {why}\n")
        return 0
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:5.0f} s  {text}\n")
        sys.stdout.flush()

    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="steelyard-fleet-") as folder:
        proof = prove(
            Path(folder), runs=options.runs, kills=options.kills, kill_a_server=True, seed=options.seed, say=say, within_s=options.within
        )
    sys.stdout.write(json.dumps(proof.as_json(), indent=2) + "\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(proof.as_json(), indent=2) + "\n")
    try:
        proof.check()
    except AssertionError as error:
        sys.stdout.write(f"something was lost or done twice: {error}\n")
        return 1
    say("nothing was lost, nothing was done twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
