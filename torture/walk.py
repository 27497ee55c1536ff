"""A walk: verbs, faults and mishaps in random order over one world; from time to time everything must come right again. One seed is one walk."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress

from torture.driver import Driver
from torture.rules import Broken
from torture.scenes import Command, Scene, big_file, whole
from torture.shim import KILLS, REFUSABLE, Plan, rot
from torture.world import MODEL, PIECE_BYTES

VERBS: list[Command] = [
    ["download"],
    ["verify"],
    ["verify", "--copy", "all"],
    ["verify", "--copy", "all", "--quick"],
    ["backup"],
    ["backup"],
    ["backup", "--to", "usb"],
    ["repair"],
    ["repair", "--copy", "all"],
    ["repair", "--copy", "hub-cache"],
    ["restore", MODEL],
    ["restore", MODEL, "--from", "usb", "--into", "into"],
    ["update", MODEL],
    ["rollback", MODEL],
    ["check-updates"],
    ["scrub"],
    ["clean"],
    ["clean", "--apply"],
    ["status"],
    ["target", "usb"],
]
HUB_FAULTS = (
    ("cdn", "reset after 100 KiB"),
    ("cdn", "cut after 700 KiB"),
    ("cdn", "503"),
    ("cdn", "flip byte 70000"),
    ("cdn", "shift bytes by 8"),
    ("cdn", "ignore range"),
    ("cdn", "html"),
    ("cdn", "other bytes"),
    ("cdn", "expire"),
    ("cdn", "claim 10 bytes less"),
    ("api", "503"),
    ("api", "close"),
    ("api", "html"),
    ("api", "garbage json"),
    ("resolve", "503"),
    ("resolve", "other etag"),
)


class Walk:
    """*steps* random steps from *seed*, on the driver's world."""

    def __init__(self, driver: Driver, seed: int, steps: int = 12) -> None:
        self.driver, self.world, self.oracle = driver, driver.world, driver.oracle
        self.rng = random.Random(seed)
        self.steps = steps
        self.story: list[str] = []

    def go(self) -> None:
        """:raises Broken: with the story so far."""
        try:
            self._begin()
            for number in range(1, self.steps + 1):
                self._step()
                if number % 6 == 0:
                    self._settle()
            self._settle()
        except Broken as broken:
            raise Broken(f"{broken}\n  the story: " + "\n    ".join(["", *self.story])) from broken

    def _begin(self) -> None:
        start = self.rng.choice(("empty", "held", "full", "full", "updated"))
        self.driver.begin(Scene("walk", start, [], lambda world: None))
        self.story.append(f"from {start}")

    # --- one step

    def _step(self) -> None:
        if self.rng.random() < 0.6:
            mishap = self.rng.choice(self._mishaps())
            told = mishap()
            if told:
                self.story.append(told)
                self.driver.tally.add(told.split(":")[0], True)
        verb = self.rng.choice(VERBS)
        plan = self._plan()
        pair = self.rng.choice(VERBS) if self.rng.random() < 0.25 else None
        self.story.append(f"{' '.join(verb)} | {plan.what or 'no fault'} {plan.at or ''} {'beside ' + ' '.join(pair) if pair else ''}")
        before = self._faults_used()
        ran = self.driver.run(verb, plan=plan, pair=pair)
        self.story[-1] += f" -> {ran.code}"
        tally = self.driver.tally
        tally.steps += 1
        if plan.what:
            tally.add(
                "unmount or read-only" if plan.what == "event" and plan.event[0] != "rot" else plan.what, ran.code == -9 or bool(ran.hit)
            )
        for name, used in self._faults_used().items():
            tally.faults[name] += used - before.get(name, 0)
        if pair:
            tally.add("two runs at once", True)
        if plan.clock_s:
            tally.add("clock jump", True)
        if ran.code == -9 and plan.what == "power loss":
            self.driver.boot = f"boot {self.rng.random()}"
        if plan.event and plan.event[0] != "rot" and self.world.drive:
            self.world.drive.plug()
        self.oracle.judge(self.story[-1])

    def _faults_used(self) -> dict[str, int]:
        used: dict[str, int] = {}
        for fault in self.world.hub.faults._faults:
            used[f"Hub: {fault.sentence}"] = used.get(f"Hub: {fault.sentence}", 0) + fault.used
        return used

    def _plan(self) -> Plan:
        root = str(self.world.root)
        roll = self.rng.random()
        at = int(self.rng.triangular(1, 160, 10))
        clock_s = self.rng.choice((0.0,) * 6 + (-400 * 86400.0, 400 * 86400.0))
        if roll < 0.45:
            return Plan(root, self.rng.choice(KILLS), at, seed=self.rng.randint(0, 1 << 30), clock_s=clock_s)
        if roll < 0.75:
            return Plan(root, self.rng.choice(list(REFUSABLE)), at, self.rng.random() < 0.5, clock_s=clock_s)
        if roll < 0.85 and self.world.drive:
            return Plan(root, "event", at, event=(self.rng.choice(("unmount", "read-only")), str(self.world.drive.point)), clock_s=clock_s)
        return Plan(root, clock_s=clock_s)

    # --- what befalls the world between two runs

    def _mishaps(self) -> list[Callable[[], str]]:
        found = [
            self._rot,
            self._rot,
            self._cut,
            self._remove,
            self._bad_record,
            self._hub_fault,
            self._hub_fault,
            self._upstream,
            self._reboot,
        ]
        if self.world.drive:
            found.append(self._unplug)
        return found

    def _some_final(self) -> tuple[str, object] | None:
        there = [
            final
            for final in self.oracle.finals()
            if final.path.is_file() and final.place not in {"into", "held"} and final.path.stat().st_size
        ]
        return (there[0].place, self.rng.choice(there)) if there else None

    def _rot(self) -> str:
        places = ["store", "hub-cache", *self.world.replicas]
        place = self.rng.choice(places)
        for path in big_file(self.world, place):
            piece = self.rng.randint(0, 3)
            rot(path, piece * PIECE_BYTES + self.rng.randint(0, PIECE_BYTES - 1), 1 << self.rng.randint(0, 7))
            self.oracle.spoiled(path, {piece})
            return f"bit rot: piece {piece} of big.dat in {place}"
        return ""

    def _cut(self) -> str:
        for path in big_file(self.world, self.rng.choice(["store", *self.world.replicas])):
            with path.open("r+b") as file:
                file.truncate(self.rng.randint(0, PIECE_BYTES * 3))
            self.oracle.spoiled(path, {-1})
            return f"cut short: {path.name}"
        return ""

    def _remove(self) -> str:
        for path in big_file(self.world, self.rng.choice(["store", "usb"])):
            path.unlink()
            self.oracle.spoiled(path, {-1})
            return f"removed by somebody: {path}"
        return ""

    def _bad_record(self) -> str:
        """A manifest, model_info.json or the history is damaged; never the lock, which git keeps."""
        found = [*(self.world.models / ".steelyard/manifests").rglob("*.json"), self.world.models / "model_info.json"]
        for root in self.world.replicas.values():
            found += root.glob(f"{MODEL}/*/manifest.json")
        there = [path for path in found if path.is_file() and path.stat().st_size > 50]
        if not there:
            return ""
        path = self.rng.choice(there)
        rot(path, self.rng.randint(0, path.stat().st_size - 1), 1 << self.rng.randint(0, 6))
        self.oracle.spoiled(path, {-1})
        return f"bad record: {path.name}"

    def _hub_fault(self) -> str:
        kind, sentence = self.rng.choice(HUB_FAULTS)
        with suppress(ValueError):
            self.world.hub.faults.add(kind, sentence, times=self.rng.choice((1, 2)))  # type: ignore[arg-type]
        return ""

    def _upstream(self) -> str:
        if len(self.world.commits) == 1:
            self.world.publish_second()
            return "upstream change"
        return ""

    def _reboot(self) -> str:
        self.driver.boot = f"boot {self.rng.random()}"
        return "reboot"

    def _unplug(self) -> str:
        assert self.world.drive is not None
        self.world.drive.unplug()
        return "drive unplugged"

    # --- everything comes right again

    def _settle(self) -> None:
        """Faults end; the documented way back must lead to whole copies everywhere, and verify must say so."""
        driver, world = self.driver, self.world
        driver.world_heals()
        info = world.models / "model_info.json"
        for command in (["download"], ["repair", "--copy", "all"], ["backup"], ["repair", "--copy", "all"]):
            ran = driver.run(command)
            self.story.append(f"settle: {' '.join(command)} -> {ran.code}")
            self.oracle.judge(self.story[-1])
        last = driver.run(["verify", "--copy", "all"])
        if ran.code or last.code:
            told = [one["errors"] for run in (ran, last) for one in run.documents]
            raise Broken(f"it does not come right: {ran.code}, {last.code}: {json.dumps(told)[:3000]}")
        commit = world.commits.index(world.locked_commit())
        whole(world, "store", "hub-cache", *world.replicas, commit=commit)
        self.oracle.judge("settled")
        if not info.is_file():
            raise Broken("model_info.json is not there")
        shutil.rmtree(world.into, ignore_errors=True)
        self.oracle.whole = {path: digest for path, digest in self.oracle.whole.items() if not path.is_relative_to(world.into)}
