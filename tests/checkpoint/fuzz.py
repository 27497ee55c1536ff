"""Mutated containers and pickles, and what must hold of whatever comes out: a verdict, soon, and nothing executed.

Run many more than the tests do with: STEELYARD_FUZZ=200000 pytest tests/checkpoint/test_fuzz.py
or without hypothesis' bookkeeping, four times as fast: python -m tests.checkpoint.fuzz SECONDS
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from steelyard.checkpoint import Inspection, Verdict, inspect

from .assemble import Part, call, dict_of, gguf_of, onnx_of, onnx_tensor, pickled, small, tensor, unicode, zip_of
from .corpus_good import optimizer, safetensors_saved, saved, sharded, state


class Memory:
    """A source in memory; not a local file, so the remote way of reading is taken when *remote*."""

    def __init__(self, data: bytes) -> None:
        self.name = "fuzz"
        self.size_bytes = len(data)
        self._data = data

    def readinto(self, offset: int, buffer: memoryview) -> int:
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None: ...


def bases() -> list[bytes]:
    """One honest file of every kind."""
    return [
        small().build(),
        saved(state()),
        saved({"model": state(), "optimizer": optimizer(state())}),
        saved(state(), _use_new_zipfile_serialization=False),
        safetensors_saved(state(), {"format": "pt"}),
        gguf_of([("w", [32, 2], 8, 0), ("b", [4], 0, 96)], bytes(112)),
        onnx_of(onnx_tensor("w", [2, 3], bytes(24)), onnx_tensor("b", [3], bytes(12))),
        next(iter(sharded().values())),
    ]


def mutated(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """*data* after *edits*: (kind, place, bytes) overwrites, inserts, deletes, repeats, truncates, or puts an interesting number."""
    out = bytearray(data)
    for kind, place, new in edits:
        at = place % (len(out) + 1)
        if kind == 0:
            out[at : at + len(new)] = new
        elif kind == 1:
            out[at:at] = new
        elif kind == 2:
            del out[at : at + len(new) * 3]
        elif kind == 3:
            out[at:at] = out[max(0, at - len(new) * 7) : at]
        elif kind == 4 and len(new) > 6:
            del out[at:]
        elif kind == 5:
            out[at : at + 4] = (0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(out))[len(new) % 7].to_bytes(4, "little")
        elif kind == 6 and out:
            out[at - 1] ^= 1 << (len(new) % 8)
    return bytes(out)


OPCODES = b"()tR}]eu.acb0125NKJMIFGLqrhjX\x8aCTUVSPQiod\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98"


def pieces(canary: str) -> list[bytes]:
    """Building blocks of pickles: honest tensors, calls that would leave the canary, and stack work between them."""
    return [
        unicode("weight"), tensor("0", [4, 3]), tensor("1", [4]), dict_of([(unicode("a"), tensor("1", [4]))]), call("os.system", unicode(canary)),
        call("posix.system", unicode(canary)), b"cos\nsystem\n", unicode("os") + unicode("system") + b"\x93", unicode(canary), b"ios\nsystem\n",
        call("collections.OrderedDict"), call("builtins.eval", unicode(f"__import__('os').system({canary!r})")), b"q\x00", b"h\x00", b"q\x01", b"h\x01",
        b"(", b"t", b"R", b"u", b"b", b"0", b"2", b"e", b"a", b"s", b"}", b"]", b")", b"N", b"\x85", b"\x81", b"o", b"K\x05", b".",
        b"ctorch._utils\n_rebuild_parameter\n", b"(" + unicode("storage") + b"ctorch\nFloatStorage\n" + unicode("0") + unicode("cpu") + b"K\x0ctQ",
    ]  # fmt: skip


def with_pickle(body: bytes) -> bytes:
    """*body* as the pickle of an otherwise honest checkpoint, its checksum right."""
    parts = small().parts()
    parts[0] = Part(parts[0].name, pickled(body))
    return zip_of(parts)


def must_hold(data: bytes) -> Inspection:
    """What is true of every input. An ok of ours must also be torch's: its safe load takes the file."""
    started = time.process_time()
    found = inspect(Memory(data))
    assert time.process_time() - started < 2
    assert found.verdict in get_args(Verdict)
    assert "not-understood" not in found.codes, found.reasons
    assert found.verdict == "ok" or found.reasons
    assert all(reason.message.isprintable() for reason in found.reasons)
    if found.verdict == "ok" and found.format in ("torch-zip", "torch-legacy"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _agrees_with_torch(data, found)
    return found


def _agrees_with_torch(data: bytes, found: Inspection) -> None:
    """Torch's safe load takes it, and finds the same bytes for each tensor as we do."""
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for key in found.weights_path:
        loaded = loaded[key] if isinstance(loaded, dict) else loaded[int(key)]
    for told in found.tensors:
        if not isinstance(loaded, dict) or not isinstance(loaded.get(told.name), torch.Tensor) or told.offset is None:
            continue
        real = loaded[told.name]
        assert tuple(real.shape) == told.shape, "shapes differ"
        begin = told.offset - told.storage_offset * real.element_size()
        assert bytes(real.untyped_storage().tolist()) == data[begin : begin + told.storage_nbytes], "torch reads other bytes than we do"


def main(seconds: float) -> None:
    """Mutate at random for so long; print how many inputs were tried and what became of them."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary"
        chosen, blocks, rng = bases(), pieces(f"touch {canary}"), random.Random(time.time_ns())
        counts: dict[str, int] = {}
        failures: dict[str, Path] = {}
        end, slowest = time.monotonic() + seconds, 0.0
        makers: list[Callable[[], bytes]] = [
            lambda: mutated(rng.choice(chosen), [_edit(rng) for _ in range(rng.randint(1, 6))]),
            lambda: with_pickle(b"".join(rng.choices(blocks, k=rng.randint(1, 30)))),
            lambda: with_pickle(bytes(rng.choices(OPCODES, k=rng.randint(1, 60)))),
            lambda: with_pickle(mutated(small().body, [_edit(rng) for _ in range(rng.randint(1, 4))])),
        ]
        while time.monotonic() < end:
            data = rng.choice(makers)()
            started = time.perf_counter()
            try:
                found = must_hold(data)
            except Exception as error:  # noqa: BLE001 - whatever it is, the input is kept and the run goes on
                kind = f"{type(error).__name__}: {str(error)[:90]}"
                if kind not in failures and len(failures) < 30:
                    failures[kind] = Path(f"fuzz-failure-{len(failures)}.bin")
                    failures[kind].write_bytes(data)
                continue
            slowest = max(slowest, time.perf_counter() - started)
            counts[found.verdict] = counts.get(found.verdict, 0) + 1
            assert not canary.exists()
        print(
            f"{sum(counts.values())} inputs, slowest {slowest * 1000:.0f} ms, verdicts {counts}, executed: {canary.exists()}, failures {len(failures)}"
        )
        for kind, path in failures.items():
            print(f"  {path}: {kind}")


def _edit(rng: random.Random) -> tuple[int, int, bytes]:
    return rng.randint(0, 6), rng.randrange(1 << 20), rng.randbytes(rng.randint(1, 9))


if __name__ == "__main__":
    main(float(sys.argv[1]))
