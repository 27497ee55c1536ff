"""The load check's child process: loads with torch, reads every tensor byte once, answers in one line of JSON.

Started by `child.run_child`; the only module of this package that imports torch. Requests come on stdin; stdout carries JSON lines only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from steelyard.checkpoint.load_plan import LoadFailure, names_digest

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Answer one request; exit code 0 means an answer was given, whatever it says."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed parent must not leave us loading
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {"verdict": "ok", "reasons": [], "phases": []}
    try:
        _check(request, answer, out)
    except LoadFailure as error:
        answer["verdict"] = error.verdict
        answer["reasons"].append({"code": error.code, "message": str(error)})
    answer["peak_rss_bytes"] = _peak_rss()
    out.write(json.dumps({"answer": answer}) + "\n")
    out.close()
    return 0


def _check(request: dict[str, Any], answer: dict[str, Any], out: Any) -> None:
    total = sum(storage["nbytes"] for storage in request["storages"])

    def phase(name: str, done: int = 0) -> None:
        out.write(json.dumps({"phase": name, "done": done, "total": total}) + "\n")

    phase("import")
    started = time.monotonic()
    try:
        import torch
    except ImportError as error:
        raise LoadFailure(
            "unsupported", "torch-missing", f'torch can\'t be imported ({error}); add it with: pip install "steelyard[torch]"'
        ) from error
    started = _lap(answer, "import", started)
    answer["torch_version"] = str(torch.__version__)
    from steelyard.checkpoint.load_torch import choose_device, load_weights, move_to_cuda, same_bytes

    device, why = choose_device(request)
    answer["device"], answer["device_reason"] = device, why
    phase("load")
    try:
        weights = load_weights(request)
        answer["names_digest"] = names_digest((name, tensor.shape, str(tensor.dtype).removeprefix("torch.")) for name, tensor in weights)
        _agree(request, weights, answer["names_digest"])
        if request["mmap"]:
            same_bytes(request, weights)
        if device == "cuda":
            move_to_cuda(weights)
        del weights
    except LoadFailure:
        raise
    except MemoryError as error:
        raise LoadFailure("too-big", "memory-limit", "there was not enough memory to load it") from error
    except Exception as error:  # the one place where torch's errors are mapped: any of them means that it does not load
        raise _mapped(error) from error
    started = _lap(answer, "load", started)
    phase("scan")
    from steelyard.checkpoint.load_scan import scan

    found = scan(Path(request["path"]), request["storages"], lambda done: phase("scan", done))
    _lap(answer, "scan", started)
    answer["finite"] = not found.non_finite
    answer["non_finite"] = found.non_finite[:100]
    answer["zero_tensors"] = found.zero
    answer["crc_checked_bytes"] = found.crc_checked_bytes
    for key, begin, end in found.crc_wrong[:5]:
        _blame(answer, "crc-mismatch", f"the bytes of storage {key} (file bytes {begin} to {end}) are not those that were saved: checksum")
    if found.short:
        _blame(answer, "bytes-differ", f"the file ended while storage {found.short} was read")
    if found.non_finite:
        _blame(answer, "values-not-finite", f"{len(found.non_finite)} tensors hold NaN or infinity, the first {found.non_finite[0]}")


def _agree(request: dict[str, Any], weights: list[tuple[str, Any]], digest: str) -> None:
    """:raises LoadFailure: when torch finds other tensors than the file's header tells."""
    expected = request["expected"]
    if request["format"] == "torchscript":
        # Its header also tells plain attributes, which are no part of a state dict.
        told = {(name, tuple(shape), dtype) for name, shape, dtype, *_ in request["tensors"]}
        agreed = all((name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) in told for name, t in weights)
    else:
        agreed = len(weights) == expected["tensors"] and digest == expected["digest"]
    if not agreed:
        raise LoadFailure(
            "broken", "tensors-differ", f"torch finds other tensors ({len(weights)}) than the file's header tells ({expected['tensors']})"
        )


def _blame(answer: dict[str, Any], code: str, message: str) -> None:
    answer["verdict"] = "broken"
    answer["reasons"].append({"code": code, "message": message})


def _mapped(error: Exception) -> LoadFailure:
    text = " ".join(str(error).split())
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text:
        return LoadFailure("too-big", "memory-limit", f"there was not enough memory to load it: {text[:200]}")
    if type(error).__name__ == "UnpicklingError" and "weights_only" in text.lower():
        # torch's own text advises to turn the guard off; ours never does.
        return LoadFailure("untrusted", "unknown-global", "torch's safe loader refuses it; it needs more than a state dict needs")
    return LoadFailure("broken", "load-failed", f"torch does not load it ({type(error).__name__}): {text[:200]}")


def _lap(answer: dict[str, Any], name: str, started: float) -> float:
    now = time.monotonic()
    answer["phases"].append([name, round(now - started, 4)])
    return now


def _peak_rss() -> int:
    # Not ru_maxrss: over fork and exec it carries the parent's size along.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
