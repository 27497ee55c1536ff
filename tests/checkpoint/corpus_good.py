"""Files that are as they should be: an honest writer made them, or could have."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import safetensors
import torch

from .assemble import gguf_of, onnx_of, onnx_tensor, small
from .corpus import case


def saved(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {"conv.weight": torch.randn(8, 4, 3, 3), "conv.bias": torch.randn(8), "norm.weight": torch.ones(8)}


def safetensors_saved(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """By the real writer; its torch part needs numpy, so the tensors are described to it here."""
    rows = {
        name: safetensors.TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."), shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in tensors.items()
    }
    return safetensors.serialize(rows, metadata)


def optimizer(like: dict[str, torch.Tensor]) -> dict[str, Any]:
    moments = {
        i: {"step": torch.tensor(9.0), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)}
        for i, t in enumerate(like.values())
    }
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(range(len(like)))}]}


def _simple(name: str, value: Any, **options: Any) -> None:
    case(f"good: {name}", "ok", format="torch-zip")(lambda _: saved(value, **options))


_simple("flat state dict", state())
_simple("wrapped in state_dict", {"state_dict": state(), "global_step": 470000, "note": "trained"})
_simple("model and optimizer", {"model": state(), "optimizer": optimizer(state()), "epoch": 3})
_simple("nested model.state_dict", {"model": {"state_dict": state(), "args": {"width": 8}}, "optimizer": optimizer(state())})
_simple("resemblyzer: step, model_state, optimizer_state", {"step": 1, "model_state": state(), "optimizer_state": optimizer(state())})
_simple("module", {"module": state(), "lr_scheduler": {"last": torch.zeros(1000)}})
_simple("moving average of equal size", {"ema": state(), "state_dict": state()})
_simple("parameters, not tensors", {name: torch.nn.Parameter(tensor) for name, tensor in state().items()})
_simple(
    "half, bfloat16, integers, bool, complex",
    {
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "wave": torch.randn(3, dtype=torch.complex64),
        "long": torch.arange(4),
        "double": torch.randn(2, dtype=torch.float64),
        "small": torch.arange(3, dtype=torch.int8),
    },
)
_simple("eight-bit floats and unsigned", {"f8": torch.randn(6).to(torch.float8_e4m3fn), "u16": torch.arange(3).to(torch.uint16)})
_simple("views into one storage", (lambda base: {"a": base[:10], "b": base[10:], "t": base.reshape(4, 5).t()})(torch.randn(20)))
_simple("tied weights", (lambda shared: {"embed": shared, "head": shared})(torch.randn(16, 4)))
_simple("scalar and empty tensors", {"step": torch.tensor(3), "none": torch.zeros(0, 4), "w": torch.randn(3)})
_simple("small expanded view", {"mask": torch.ones(1).expand(64, 64), "w": torch.randn(3)})
_simple("a single tensor", torch.randn(3, 3))
_simple("a list of tensors", [torch.randn(2), torch.randn(3)])
_simple("a module's state dict with its metadata", torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict())
_simple("a quantised tensor", {"q": torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.qint8), "w": torch.randn(4)})
_simple("a sparse tensor", {"s": torch.eye(4).to_sparse(), "w": torch.randn(4)})
_simple("five hundred tensors", {f"layer.{i}.weight": torch.full((3,), float(i)) for i in range(500)})
_simple("names with spaces and umlauts", {"größe weight": torch.randn(2)})


@case("good: no checksums", "ok", "crc-absent", format="torch-zip")
def _(_: str) -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return saved(state())
    finally:
        torch.serialization.set_crc32_options(True)


case("good: assembled by hand", "ok", format="torch-zip")(lambda _: small().build())


def _legacy(name: str, value: Any) -> None:
    case(f"good: legacy, {name}", "ok", format="torch-legacy")(lambda _: saved(value, _use_new_zipfile_serialization=False))


_legacy("flat", state())
_legacy("wrapped with optimizer", {"model": state(), "optimizer": optimizer(state())})
_legacy("views into one storage", (lambda base: {"a": base[:10], "b": base[10:]})(torch.randn(20)))


@case("good: safetensors", "ok", format="safetensors")
def _(_: str) -> bytes:
    return safetensors_saved(state(), {"format": "pt"})


@case("good: safetensors under a .pt name", "ok", format="safetensors", file="model.pt")
def _(_: str) -> bytes:
    return safetensors_saved({"x": torch.zeros(3, dtype=torch.bfloat16), "e": torch.zeros(0)})


@case("good: sharded safetensors", "ok", format="safetensors", file="model.safetensors.index.json")
def _(_: str) -> dict[str, bytes]:
    return sharded()


def sharded() -> dict[str, bytes]:
    weights = state()
    names = list(weights)
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    index = {"metadata": {"total_size": 1216}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    files = {shard: safetensors_saved({name: weights[name] for name in held}) for shard, held in shards.items()}
    return {"model.safetensors.index.json": json.dumps(index).encode(), **files}


@case("good: gguf", "ok", format="gguf", file="model.gguf")
def _(_: str) -> bytes:
    architecture = ("general.architecture", struct.pack("<IQ", 8, 5) + b"llama")
    vocabulary = ("tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"bc")
    return gguf_of([("w", [32, 2], 8, 0), ("b", [4], 0, 96)], bytes(96) + bytes(16), keys=[architecture, vocabulary])


@case("good: onnx", "ok", format="onnx", file="model.onnx")
def _(_: str) -> bytes:
    return onnx_of(onnx_tensor("w", [2, 3], bytes(24)), onnx_tensor("b", [3], bytes(12)))
