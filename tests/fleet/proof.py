"""N runs on a fleet whose workers, machines, runs and a server are killed at random: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.fleet.room import Fleet, fleet
from tests.prefect.conftest import Api

MODEL_BYTES = 1_500_000
"""Large enough for a journal, small enough for hundreds."""
KINDS = ("worker", "machine", "run")
LAST_KILL = 0.8
"""Share of the runs that may be over at the last kill: something must still be under way."""


@dataclass
class Proof:
    runs: int
    seconds: float = 0.0
    cpu_s: float = 0.0
    """CPU seconds of all processes of the fleet, from its making to its end; more tells of the proof's cost than the seconds on a shared machine."""
    states: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    begun_again: int = 0
    """Runs that were taken up once more."""
    files_right: int = 0
    downloads: dict[int, int] = field(default_factory=dict)
    """How often a model's bytes were brought into the store -> how many models."""
    found_done: int = 0
    """Runs that were taken up again and found all done."""
    bytes_needed: int = 0
    bytes_sent: int = 0
    slots_taken: int = 0
    late_ends: list[str] = field(default_factory=list)
    ended: int = 0
    """Runs that are over: what kills are spread by."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """:raises AssertionError: when something was lost or done twice."""
        assert self.states == {"COMPLETED": self.runs}, self.as_json()
        assert self.files_right == self.runs, self.as_json()
        assert set(self.downloads) <= {0, 1}, self.as_json()
        # A model without a record of its download: its run was killed between the publishing and the record, and the next found all done.
        assert self.downloads.get(0, 0) <= self.begun_again, self.as_json()
        # A killed download loses what was in flight, and nothing else comes twice.
        assert self.bytes_sent <= self.bytes_needed + sum(self.kills.values()) * 6 * MODEL_BYTES, self.as_json()
        assert self.slots_taken == 0, self.as_json()


def prepare(home: Path, hub: LoopbackHub, models: int) -> Path:
    """A config with *models* models of one file each, and a Hub that has them."""
    noise = random.Random(9).randbytes(MODEL_BYTES - 8)
    config = home / "steelyard.toml"
    parts = [
        f'[store]\nmodels = "{home}/models"\nhf_home = "{home}/hf"\nmin_free = 0\n',
        f'[hub]\nendpoint = "{hub.endpoint}"\ntimeout = 10\npatience = 60\n',
    ]
    for number in range(models):
        hub.add_revision(f"fleet/m{number:04}", {"w.bin": number.to_bytes(8, "big") + noise})
        parts.append(f'[models.m{number:04}]\nrepo_id = "fleet/m{number:04}"\nfiles = ["w.bin"]\n')
    config.write_text("".join(parts))
    return config


def prove(
    home: Path,
    *,
    runs: int,
    kills: int,
    kill_a_server: bool,
    seed: int,
    say: Callable[[str], None],
    within_s: float,
    kinds: Sequence[str] = KINDS,
) -> Proof:
    """Make the fleet, ask for *runs* downloads of a model each, kill one of *kinds* after the other meanwhile, and count what came of it."""
    chance = random.Random(seed)
    before_s = _cpu_s()
    proof = Proof(runs, bytes_needed=runs * MODEL_BYTES)
    with LoopbackHub() as hub:
        config = prepare(home, hub, runs)
        hub.rate_limit_bytes_per_s = 1_000_000
        with fleet(home / "fleet", config) as made:
            say(f"up: {len(made.servers)} servers, {len(made.workers)} workers; asking for {runs} runs")
            api, began = made.api, time.monotonic()
            idents = [api.start("download-models/on-demand", models=[f"m{number:04}"], config=str(config)) for number in range(runs)]
            plan = [kinds[number % len(kinds)] for number in range(kills)]
            if kill_a_server and len(made.servers) > 1:
                plan.insert(len(plan) // 2, "server")
            with _killing(made, plan, chance, proof, hub, say):
                _await(api, idents, proof, began, within_s, say)
            proof.seconds = round(time.monotonic() - began, 1)
            ended = _runs(api, idents)
            proof.states = dict(Counter(str(run["state_type"]) for run in ended))
            proof.begun_again = sum(run["run_count"] > 1 for run in ended)
            proof.late_ends = [
                f"{run['name']}: {run['state_type']} {run['state']['message']}" for run in ended if run["state_type"] != "COMPLETED"
            ][:5]
            proof.slots_taken = _slots(api)
        proof.bytes_sent = hub.bytes_sent("cdn")
        hub.rate_limit_bytes_per_s = None
    proof.cpu_s = round(_cpu_s() - before_s)
    site = Site.open(config)
    proof.files_right = sum(row.outcome == "ok" for row in verify(site).rows)
    counts: Counter[int] = Counter()
    for model in site.config.models:
        events = site.history.events("download", model, 50)
        brought = sum(bool(facts.get("bytes")) and outcome == "ok" for _, _, outcome, facts in events)
        proof.found_done += sum(not facts.get("bytes") for _, _, _, facts in events)
        counts[brought] += 1
    proof.downloads = dict(counts)
    return proof


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _runs(api: Api, idents: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at in range(0, len(idents), 200):
        found += api.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": idents[at : at + 200]}}, "limit": 200})
    return found


def _await(api: Api, idents: list[str], proof: Proof, began: float, within_s: float, say: Callable[[str], None]) -> None:
    """Until every run is done. A run that crashed is not over: it is taken up again."""
    said = 0.0
    while True:
        try:
            counts = {state: _count(api, idents, state) for state in ("COMPLETED", "FAILED", "CANCELLED")}
            proof.ended = sum(counts.values())
        except OSError as error:
            # A server that is busy with something else is asked again; what it does meanwhile is what is looked at.
            say(f"no answer: {error}")
        elapsed = time.monotonic() - began
        if proof.ended == len(idents):
            return
        if elapsed > within_s:
            say(f"time is up after {elapsed:.0f} s: {proof.ended} of {len(idents)} ended")
            return
        if elapsed - said > 20:
            said = elapsed
            say(f"{elapsed:.0f} s: {proof.ended} of {len(idents)} ended")
        time.sleep(2)


def _count(api: Api, idents: list[str], state: str) -> int:
    """Counted by the server: to read 200 runs out every second is work that their workers would wait for."""
    found: int = api.ask("/flow_runs/count", {"flow_runs": {"id": {"any_": idents}, "state": {"type": {"any_": [state]}}}})
    return found


def _slots(api: Api) -> int:
    """Slots of our deployments' limits that are still taken."""
    found = api.ask("/v2/concurrency_limits/filter", {"limit": 200})
    return sum(int(one["active_slots"]) for one in found)


@contextmanager
def _killing(
    made: Fleet, plan: Sequence[str], chance: random.Random, proof: Proof, hub: LoopbackHub, say: Callable[[str], None]
) -> Iterator[None]:
    """Kill while the block runs: a worker alone, a whole machine, one run; each dead worker is started again. The second server once."""
    import threading

    over = threading.Event()
    done: Counter[str] = Counter()

    def work() -> None:
        # Spread over all of the work, whatever the machine's speed.
        for kind, after in zip(plan, sorted(chance.uniform(0, LAST_KILL * proof.runs) for _ in plan), strict=True):
            while proof.ended < int(after) and not over.is_set():
                over.wait(0.2)
            over.wait(chance.uniform(1.0, 4.0))
            # Not before bytes flow: there is something to lose then.
            before = hub.bytes_sent("cdn")
            while hub.bytes_sent("cdn") == before and not over.wait(0.05):
                continue
            if over.is_set():
                return
            with contextlib.suppress(ProcessLookupError, IndexError):
                if kind == "run":
                    os.kill(chance.choice(_run_pids(made)), signal.SIGKILL)
                else:
                    busy = [worker for worker in made.workers if len(worker.look()) > 1]
                    victim = made.servers[1] if kind == "server" else chance.choice(busy or made.workers)
                    victim.kill(with_its_runs=kind != "worker")
                    over.wait(chance.uniform(0.5, 2.0))
                    victim.start()
                done[kind] += 1
                say(f"killed: {kind}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
        proof.kills = dict(done)


def _run_pids(made: Fleet) -> list[int]:
    """Processes of runs, below all workers."""
    found = []
    for worker in made.workers:
        for pid in worker.look():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if pid != worker.pid and (b"prefect.engine" in command or b"prefect.flow_engine" in command):
                    found.append(pid)
    return found
