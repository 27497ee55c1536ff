"""What the benches found, as rows of one table: ours beside the peer's, the ratio, and where we are behind, why."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One race. *ours* and *peer* in *unit*, medians of *rounds*; smaller is better, always. CPU in seconds, peaks in MiB; None: not measured."""

    bench: str
    what: str
    ours: float
    peer_name: str
    peer: float
    unit: str = "s"
    rounds: int = 0
    ours_cpu_s: float | None = None
    peer_cpu_s: float | None = None
    ours_peak_mib: float | None = None
    peer_peak_mib: float | None = None
    because: str = ""
    """Why we are behind, where we are known to be."""
    is_limit: bool = False
    """The peer does less than is asked (no proof, no copy): nobody can be faster; how near we are is what counts."""

    @property
    def ratio(self) -> float:
        """Ours of the peer's: below 1 we are ahead."""
        return self.ours / self.peer if self.peer else float("inf") if self.ours else 1.0

    @property
    def judgement(self) -> str:
        if self.is_limit:
            return f"{self.ratio:.2f} × the limit"
        if self.ratio <= 1.02:
            return f"ahead, {1 / self.ratio:.1f} ×" if self.ratio else "ahead"
        return f"behind by {(self.ratio - 1) * 100:.0f} %" + (f": {self.because}" if self.because else "")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 4), "judgement": self.judgement}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Row:
        return cls(**{key: value for key, value in record.items() if key not in {"ratio", "judgement"}})


LIMITS = ("dd", "cat", "curl")
"""They read or write and prove nothing."""
RUNNING = " (in a process that runs already)"
FIRST = " (the first time, without the receipt of an earlier one)"
START_UP = "Python starts in 0.2 to 0.4 s before the work begins"
RECORDS = "the records of all files are read and checked before the first is looked at"
S3_REASONS = {
    "download": "every piece is proven; the peers prove nothing",
    "nothing to do": "Python starts, and reads the records of all files",
}
"""By how the race's title begins."""


def rows_of(bench: str, record: Mapping[str, Any]) -> list[Row]:
    """The rows of what *bench* wrote. One that writes "rows" itself is taken at its word; the others are read by what they are known to write."""
    if "rows" in record:
        return [Row.from_json({"bench": bench, **row}) for row in record["rows"]]
    reader = _READERS.get(bench)
    return list(reader(bench, record)) if reader else []


def _pairs(
    bench: str,
    what: str,
    times: Mapping[str, list[float]],
    ours: str,
    costs: Mapping[str, Any],
    because: str = "",
    skip: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Ours beside each other contender of one race."""
    for peer, took in times.items():
        if peer == ours or peer in skip:
            continue
        mine, its = costs.get(ours, {}), costs.get(peer, {})
        yield Row(
            bench,
            what,
            statistics.median(times[ours]),
            peer,
            statistics.median(took),
            rounds=len(took),
            ours_cpu_s=mine.get("cpu_s"),
            peer_cpu_s=its.get("cpu_s"),
            ours_peak_mib=mine.get("peak_mib") or None,
            peer_peak_mib=its.get("peak_mib") or None,
            because=because,
            is_limit=peer.split(" ")[0].strip(":") in LIMITS,
        )


def _verify(bench: str, record: Mapping[str, Any]) -> Iterator[Row]:
    times, costs, size = record["seconds"], record.get("costs", {}), record["size_bytes"] / (1 << 30)
    for heat, ours in (("warm", "steelyard verify"), ("cold", "engine")):
        mine = {name.removeprefix(f"{heat} "): took for name, took in times.items() if name.startswith(f"{heat} ")}
        spent = {name.removeprefix(f"{heat} "): cost for name, cost in costs.items() if name.startswith(f"{heat} ")}
        where = RUNNING if ours == "engine" else ""
        yield from _pairs(bench, f"verify {size:g} GiB, {heat}{where}", mine, ours, spent, START_UP, skip=("engine",))
        if ours != "engine":
            yield from _pairs(bench, f"verify {size:g} GiB, {heat}{RUNNING}", mine, "engine", spent, skip=("steelyard verify",))


def _backup(bench: str, record: Mapping[str, Any]) -> Iterator[Row]:
    for title, race in record.items():
        if isinstance(race, dict) and "seconds" in race and "command" in race["seconds"]:
            skip = ("verb", "verb, fresh", "verb, again", "command", "command, first")
            told = (
                ("command", "", START_UP),
                ("command, first", FIRST, START_UP),
                ("verb", RUNNING, ""),
                ("verb, fresh", RUNNING, RECORDS),
            )
            for ours, where, why in told:
                if ours in race["seconds"]:
                    yield from _pairs(bench, f"backup: {title}{where}", race["seconds"], ours, race.get("costs", {}), why, skip)


def _download(bench: str, record: Mapping[str, Any]) -> Iterator[Row]:
    medians, names = record["medians"], list(record["medians"])
    for ours in [name for name in names if name.startswith("steelyard")]:
        for peer in [name for name in names if not name.startswith("steelyard")]:
            yield Row(
                bench,
                f"download {record['gib']:g} GiB and prove it, {ours.removeprefix('steelyard ').strip('()')}",
                medians[ours]["wall_s"],
                peer,
                medians[peer]["wall_s"],
                rounds=record["rounds"],
                ours_cpu_s=medians[ours]["cpu_s"],
                peer_cpu_s=medians[peer]["cpu_s"],
                ours_peak_mib=medians[ours]["peak_mib"] or None,
                peer_peak_mib=medians[peer]["peak_mib"] or None,
                because="it proves what it fetched, curl does not" if peer.startswith("curl") else "",
                is_limit=peer.startswith("curl"),
            )


def _s3(bench: str, record: Mapping[str, Any]) -> Iterator[Row]:
    for title, race in record.items():
        if not isinstance(race, dict) or "wall" not in race or "steelyard" not in race["wall"]:
            continue
        costs = {name: {"cpu_s": statistics.median(took)} for name, took in race.get("cpu", {}).items()}
        best: dict[str, list[float]] = {"steelyard": race["wall"]["steelyard"]}
        for tool in ("s5cmd", "rclone", "aws", "boto3", "curl"):
            # Each is tried with several flags, and its best counts.
            tried = {name: took for name, took in race["wall"].items() if name.startswith(tool)}
            if tried:
                name = min(tried, key=lambda one: statistics.median(tried[one]))
                best[name] = tried[name]
        why = next((reason for start, reason in S3_REASONS.items() if title.startswith(start)), "")
        yield from _pairs(bench, f"S3 {title}", best, "steelyard", costs, why)


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], Iterator[Row]]] = {
    "verify": _verify,
    "backup": _backup,
    "download": _download,
    "s3": _s3,
}
