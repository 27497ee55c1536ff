"""`load_check`: does a checkpoint really load. In a child process with an end, weights_only always, after our own look at the container."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steelyard.checkpoint.child import ChildOutcome, run_child
from steelyard.checkpoint.inspect import inspect
from steelyard.checkpoint.inspection import Inspection
from steelyard.checkpoint.load_plan import may_map, memory_need, names_digest, plan
from steelyard.checkpoint.reasons import Reason
from steelyard.source import LocalFile

LoadVerdict = Literal["ok", "broken", "untrusted", "too-big", "unsupported"]
Device = Literal["auto", "cpu", "cuda"]
Progress = Callable[[str, int, int], None]
"""Called with (phase, done bytes, total bytes); phases are import, load, scan."""

_FROM_INSPECTION: dict[str, LoadVerdict] = {
    "hostile": "untrusted", "untrusted": "untrusted", "broken": "broken", "unsupported": "unsupported",
}  # fmt: skip


_PACKED_DTYPES = frozenset({"float4_e2m1fn_x2", "float6_e2m3", "float6_e3m2"})


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading proved. *finite* is None where values were not looked at; nothing unknown is reported as well."""

    verdict: LoadVerdict
    reasons: tuple[Reason, ...]
    device: str = ""
    device_reason: str = ""
    tensors: int = 0
    parameters: int = 0
    weights_key: str | None = None
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    finite: bool | None = None
    non_finite: tuple[str, ...] = ()
    zero_tensors: tuple[str, ...] = ()
    crc_checked_bytes: int = 0
    mapped: bool = False
    torch_version: str = ""
    need_bytes: int = 0
    names_digest: str = ""
    phases: tuple[tuple[str, float], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The contract's load row."""
        return {
            "verdict": self.verdict,
            "reasons": [reason.as_json() for reason in self.reasons],
            "device": self.device,
            "device_reason": self.device_reason,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "weights_key": self.weights_key,
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "finite": self.finite,
            "non_finite": list(self.non_finite),
            "zero_tensors": list(self.zero_tensors),
            "crc_checked_bytes": self.crc_checked_bytes,
            "mapped": self.mapped,
            "torch_version": self.torch_version,
            "phases": {name: round(seconds, 3) for name, seconds in self.phases},
        }


def load_check(
    path: Path,
    device: Device = "auto",
    *,
    timeout_s: float = 600.0,
    max_memory_bytes: int | None = None,
    stop: threading.Event | None = None,
    allow_globals: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> LoadReport:
    """Load *path* in a child process and prove its tensors, values and checksums; no weights cross back.

    The container is judged first, and what is broken, hostile or untrusted is never handed to torch. Never retried with
    weights_only=False. Names in *allow_globals* are replaced by inert stand-ins in the child: nothing of theirs is imported.
    *max_memory_bytes* bounds the child's own memory (file pages it maps do not count); by default what the machine has free.
    :raises Stopped: when *stop* was set; the child is gone by then.
    :raises Missing, WrongType, Unreadable: when *path* can't be read.
    """
    with LocalFile(path) as source:
        inspection = inspect(source, allow_globals=allow_globals)
    if "shards" in inspection.metadata and inspection.verdict in ("ok", "suspect"):
        return _load_set(
            path, inspection, device, timeout_s=timeout_s, max_memory_bytes=max_memory_bytes, stop=stop, allow_globals=allow_globals, progress=progress
        )  # fmt: skip
    return load_inspected(
        path, inspection, device, timeout_s=timeout_s, max_memory_bytes=max_memory_bytes, stop=stop, allow_globals=allow_globals, progress=progress
    )  # fmt: skip


def load_inspected(
    path: Path,
    inspection: Inspection,
    device: Device = "auto",
    *,
    timeout_s: float = 600.0,
    max_memory_bytes: int | None = None,
    stop: threading.Event | None = None,
    allow_globals: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> LoadReport:
    """`load_check` for a file whose inspection is at hand."""
    base: dict[str, Any] = {
        "tensors": len(inspection.tensors),
        "parameters": inspection.parameters,
        "weights_key": inspection.weights_key,
        "seconds": inspection.seconds,
    }
    refused = _refused_by_inspection(inspection)
    if refused:
        return LoadReport(refused, inspection.reasons, **base)
    if importlib.util.find_spec("torch") is None:
        return LoadReport(
            "unsupported", (Reason("torch-missing", 'torch is not installed; add it with: pip install "steelyard[torch]"'),), **base
        )
    if inspection.format not in ("torch-zip", "torch-legacy", "torchscript", "safetensors"):
        return LoadReport("unsupported", (Reason("no-loader", f"torch does not load {inspection.format} files"),), **base)
    strange = sorted({t.dtype for t in inspection.tensors if t.dtype in _PACKED_DTYPES})
    if strange:
        return LoadReport("unsupported", (Reason("no-loader", f"torch has no plain tensors of {', '.join(strange)}"),), **base)
    mapped = may_map(inspection)
    need = memory_need(inspection, mapped=mapped)
    room, whose = (max_memory_bytes, "the limit set") if max_memory_bytes is not None else (available_memory(), "free memory")
    if room is not None and need > room:
        sentence = f"loading it takes {_gb(need)} of memory, {whose} is {_gb(room)}"
        return LoadReport("too-big", (Reason("memory-need", sentence),), need_bytes=need, **base)
    request = plan(inspection, path=str(path.absolute()), device=device, allow_globals=allow_globals, mapped=mapped)
    outcome = run_child(request, timeout_s=timeout_s, max_memory_bytes=room, stop=stop, progress=progress)
    return _report(outcome, inspection, base, need, mapped)


def _load_set(path: Path, whole: Inspection, device: Device, *, timeout_s: float, **kept: Any) -> LoadReport:
    """Each shard in a child of its own, one after the other, *timeout_s* for all; the first that does not load ends it."""
    deadline = time.monotonic() + timeout_s
    reports: list[LoadReport] = []
    for shard in whole.metadata["shards"]:
        report = load_check(path.parent / shard, device, timeout_s=max(1.0, deadline - time.monotonic()), **kept)
        reports.append(report)
        if report.verdict != "ok":
            break
    last = reports[-1]
    return replace(
        last, tensors=len(whole.tensors), parameters=whole.parameters, weights_key=whole.weights_key,
        seconds=sum(report.seconds for report in reports), peak_rss_bytes=max(report.peak_rss_bytes for report in reports),
        finite=all(report.finite for report in reports) if last.verdict == "ok" else last.finite,
        zero_tensors=tuple(name for report in reports for name in report.zero_tensors),
        crc_checked_bytes=sum(report.crc_checked_bytes for report in reports),
        names_digest=names_digest((t.name, t.shape, t.dtype) for t in whole.tensors), phases=(),
    )  # fmt: skip


def _refused_by_inspection(inspection: Inspection) -> LoadVerdict | None:
    return _FROM_INSPECTION.get(inspection.verdict)


def _report(outcome: ChildOutcome, inspection: Inspection, base: dict[str, Any], need: int, mapped: bool) -> LoadReport:
    """The child's answer as a report; how it ended where it gave none."""
    base["seconds"] += outcome.seconds
    remarks = tuple(reason for reason in inspection.reasons if reason.verdict in ("ok", "suspect") and reason.code != "headers-inferred")
    answer = outcome.answer
    verdict: LoadVerdict = outcome.verdict
    reasons = outcome.reasons
    zero = tuple(answer.get("zero_tensors", ()))
    if zero:
        reasons = (*reasons, Reason("zero-tensors", f"{len(zero)} tensors are zero throughout, the first {zero[0]}"))
    if not mapped and inspection.format == "torch-zip":
        reasons = (*reasons, Reason("not-mapped", "read whole, not mapped: its container is not as torch lays it out"))
    return LoadReport(
        verdict, (*reasons, *remarks), device=answer.get("device", ""), device_reason=answer.get("device_reason", ""),
        peak_rss_bytes=int(answer.get("peak_rss_bytes", outcome.peak_rss_bytes)), finite=answer.get("finite"),
        non_finite=tuple(answer.get("non_finite", ())), zero_tensors=zero, crc_checked_bytes=int(answer.get("crc_checked_bytes", 0)),
        mapped=mapped and bool(answer), torch_version=answer.get("torch_version", ""), need_bytes=need,
        names_digest=answer.get("names_digest", ""), phases=tuple((str(name), float(s)) for name, s in answer.get("phases", ())), **base,
    )  # fmt: skip


def available_memory() -> int | None:
    """Bytes this process may still take: the kernel's MemAvailable, or what its cgroup leaves if that is less. None off Linux."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
