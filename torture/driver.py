"""One worker: a world, a Hub, a zygote; runs scenes with a fault each, and random walks; raises Broken with all that is needed to do it again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steelyard.standins.hub import LoopbackHub
from torture.rules import Broken, Oracle, fsync_rule
from torture.scenes import SCENES, STARTS, Command, Scene
from torture.shim import CHANGES, KILLS, REFUSABLE, Plan
from torture.world import Drive, World
from torture.zygote import Zygote


def environment(home: Path, s3: dict[str, str] | None = None) -> dict[str, str]:
    """Nothing of the tester's own Hub, Prefect or store."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_", "PREFECT_", "STEELYARD_", "AWS_"))
    }
    return (
        kept | {"HF_HOME": str(home / "hf-of-nobody"), "HF_HUB_DISABLE_TELEMETRY": "1", "XDG_STATE_HOME": str(home / "state")} | (s3 or {})
    )


@dataclass
class Tally:
    """What was done, for the report."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    steps: int = 0
    bytes_judged: int = 0
    not_reached: int = 0

    def add(self, what: str, hit: bool) -> None:
        if not hit:
            self.not_reached += 1
        elif what in KILLS:
            self.kills[what] += 1
        else:
            self.faults[what] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "kill_points": sum(self.kills.values()),
            "other_faults": sum(self.faults.values()),
            "kills": dict(self.kills),
            "faults": dict(self.faults),
            "runs": self.runs,
            "steps": self.steps,
            "bytes_judged": self.bytes_judged,
            "faults_not_reached": self.not_reached,
        }


@dataclass
class Ran:
    """What came of one run of a command."""

    code: int
    documents: list[dict[str, Any]]
    seen: dict[str, int]
    hit: str
    trace: list[list[str]]


class Driver:
    """Use as a context manager."""

    def __init__(
        self, place: Path, *, world_seed: int = 0, drive: bool | None = None, s3: dict[str, str] | None = None, s3_endpoint: str = ""
    ) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="steelyard-torture-", dir=place))
        self._stack = contextlib.ExitStack()
        self._with_drive = os.geteuid() == 0 if drive is None else drive
        self._s3, self._s3_endpoint = s3 or {}, s3_endpoint
        self._seed = world_seed
        self.tally = Tally()
        self.calls: dict[str, dict[str, int]] = {}
        """Of each scene without a fault: how many calls of each kind."""
        self._was_plugged = False
        self.boot = ""
        """What /proc says of this boot; another one after a power loss."""

    def __enter__(self) -> Self:
        try:
            self.hub = self._stack.enter_context(LoopbackHub())
            root = self.scratch / "world"
            drive = None
            if self._with_drive:
                drive = Drive(self.scratch / "drive.img", root / "drive")
                self._stack.callback(drive.end)
                try:
                    drive.make()
                except (RuntimeError, OSError):
                    drive.end()
                    drive = None
            self.world = World(root, self.hub, self._seed, drive=drive, s3_endpoint=self._s3_endpoint, s3_prefix=self.scratch.name)
            self.oracle = Oracle(self.world)
            (self.scratch / "state").mkdir()
            self.zygote = self._stack.enter_context(Zygote(environment(self.scratch, self._s3), 512 * 1024))
            self._make_starts()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # --- runs

    def run(self, *commands: Command, plan: Plan | None = None, trace: bool = False, pair: Command | None = None) -> Ran:
        """Run *commands* one after the other in one child, *pair* in another beside it. :raises Broken: on a traceback or a verdict that is not true."""
        plan = plan or Plan(str(self.world.root))
        plan = replace(plan, boot=plan.boot or self.boot)
        out = self.scratch / "out.json"
        jobs = [self._job(list(commands), plan, out, trace)]
        if pair:
            jobs.append(self._job([pair], replace(plan, what="", at=0), self.scratch / "pair.json", False))
        self._was_plugged = self.world.drive is not None and self.world.drive.is_plugged
        for job in jobs:
            for old in (job["out"], job["out"] + ".facts", str(Path(job["out"]).with_suffix(".traceback"))):
                Path(old).unlink(missing_ok=True)
        told = self.zygote.run(jobs)
        self._plug_in_again()
        self.tally.runs += len(jobs)
        ran = self._ran(jobs[0], told[0], alone=not pair)
        if told[0]["seconds"] > 55:
            raise Broken(f"{commands} hung")
        if pair:
            self._ran(jobs[1], told[1], alone=False)
        return ran

    def _plug_in_again(self) -> None:
        """A drive that went in the middle of a run comes back before what was said of its files is judged. :raises Broken:"""
        drive = self.world.drive
        if drive is not None and not drive.is_plugged and self._was_plugged:
            if any(drive.point.iterdir()):
                raise Broken("something was written into the bare mount point when the drive went")
            drive.plug()

    def _job(self, commands: list[Command], plan: Plan, out: Path, trace: bool) -> dict[str, Any]:
        config = ["--config", str(self.world.config)]
        return {
            "commands": [[*command, *config] for command in commands],
            "plan": plan.as_json(),
            "out": str(out),
            "cwd": str(self.world.home),
            "trace": trace,
        }

    def _ran(self, job: dict[str, Any], outcome: dict[str, Any], *, alone: bool) -> Ran:
        out = Path(job["out"])
        what = " && ".join(" ".join(command[:-2]) for command in job["commands"])
        if (failed := out.with_suffix(".traceback")).exists():
            raise Broken(f"{what}: {failed.read_text()}")
        killed = outcome["code"] < 0
        documents = []
        for text in out.read_text().split("\n\x1e\n") if out.exists() else ():
            if not text.strip():
                continue
            try:
                documents.append(json.loads(text))
            except ValueError:
                if not killed:
                    raise Broken(f"{what}: not one JSON document on stdout: {text[:300]!r}") from None
        facts = Path(job["out"] + ".facts")
        told = json.loads(facts.read_text()) if facts.exists() else {"seen": {}, "hit": "killed" if killed else "", "trace": []}
        log = Path(job["out"] + ".log")
        if log.exists() and "Traceback" in (text := log.read_text(errors="replace")):
            raise Broken(f"{what}: a traceback: {text[-1500:]}")
        for document in documents:
            self.oracle.told(document, what, truth=alone)
        return Ran(outcome["code"], documents, told["seen"], told["hit"], told["trace"])

    def settle(self, scene: Scene) -> None:
        """The next undisturbed run must reach the goal, keep the order of fsync and rename, and leave what verify calls right."""
        self.world_heals()
        ran = self.run(scene.command, trace=True)
        if ran.code != scene.code:
            raise Broken(f"the undisturbed run exits {ran.code}, not {scene.code}: {json.dumps(ran.documents)[:1500]}")
        if late := fsync_rule(ran.trace, str(self.world.root)):
            raise Broken("; ".join(late[:5]))
        self.oracle.judge("after the undisturbed run")
        scene.goal(self.world)

    def world_heals(self) -> None:
        self.hub.faults.clear()
        if self.world.drive:
            self.world.drive.plug()

    # --- states

    def _make_starts(self) -> None:
        self.world.keep(self.scratch / "keep" / "empty")
        for name, commands in STARTS.items():
            if name == "updated":
                self.world.publish_second()
            self.world.put_back(self.scratch / "keep" / "empty" if name != "updated" else self.scratch / "keep" / "full")
            for command in commands if name != "updated" else [commands[-1]]:
                ran = self.run(command)
                if ran.code:
                    raise Broken(f"{command} fails in a world without faults: {json.dumps(ran.documents)[:2000]}")
            self.world.keep(self.scratch / "keep" / name)

    def begin(self, scene: Scene) -> None:
        """The world as the scene wants it."""
        self.boot = ""
        self.world_heals()
        self.world.put_back(self.scratch / "keep" / scene.start)
        self.oracle.damaged, self.oracle.spoiled_files, self.oracle.whole = {}, {}, {}
        self.oracle.judge("at the start")
        scene.spoil(self.world, self.oracle)

    def scenes(self) -> Iterator[Scene]:
        for scene in SCENES:
            if "drive" in scene.command and not self.world.drive:
                continue
            yield scene

    def count(self, scene: Scene, what: str) -> int:
        """How many calls of the scene's command *what* can fall on. Found out by one run without a fault, which must reach the goal and sync in order."""
        if scene.name not in self.calls:
            self.begin(scene)
            ran = self.run(scene.command, trace=True)
            if ran.code != scene.code:
                raise Broken(f"{scene.name} exits {ran.code} without a fault: {json.dumps(ran.documents)[:2000]}")
            if late := fsync_rule(ran.trace, str(self.world.root)):
                raise Broken(f"{scene.name}: {'; '.join(late[:5])}")
            self.oracle.judge(f"{scene.name} without a fault")
            scene.goal(self.world)
            self.calls[scene.name] = ran.seen
        return sum(count for kind, count in self.calls[scene.name].items() if kind in REFUSABLE.get(what, CHANGES))

    # --- one point: a fault at one call of one scene, then perhaps more of them, then none

    def point(self, scene: Scene, what: str, at: int, seed: int) -> None:
        """:raises Broken:"""
        rng = random.Random(seed)
        self.begin(scene)
        self._disturbed(scene, what, at, rng)
        for _ in range(rng.randint(3, 8)):
            again = rng.choice([*KILLS, *REFUSABLE])
            self._disturbed(scene, again, rng.randint(1, max(1, self.count(scene, again))), rng)
        self.settle(scene)
        self.tally.steps += 1

    def _disturbed(self, scene: Scene, what: str, at: int, rng: random.Random) -> None:
        clock_s = rng.choice((0.0, 0.0, 0.0, -86400.0 * 400, 86400.0 * 400))
        lasting = what in REFUSABLE and rng.random() < 0.5
        plan = Plan(str(self.world.root), what, at, lasting, rng.randint(0, 1 << 30), clock_s)
        ran = self.run(scene.command, plan=plan)
        killed = ran.code == -9
        if killed and what == "power loss":
            self.boot = f"boot {rng.random()}"
        self.tally.add(what, killed or bool(ran.hit))
        if clock_s:
            self.tally.add("clock jump", True)
        self.oracle.judge(f"{scene.name} with {what} at call {at}{' and after' if lasting else ''}")
