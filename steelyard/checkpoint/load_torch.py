"""What the child does with torch: choose a device, load by weights_only, compare with the header. Imported in the child alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from steelyard.checkpoint.load_plan import LoadFailure
from steelyard.checkpoint.weights_key import key_name

EDGE_BYTES = 64
Weights = list[tuple[str, torch.Tensor]]


class _Inert:
    """Stands for a class on the model's allowance: takes anything, does nothing, imports nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def choose_device(request: dict[str, Any]) -> tuple[str, str]:
    """(device, why it was chosen).

    :raises LoadFailure: when CUDA was asked for and there is none, or too little of it.
    """
    wanted, need = request["device"], request["vram_need"]
    if wanted == "cpu":
        return "cpu", "asked for"
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        if wanted == "cuda":
            raise LoadFailure("unsupported", "cuda-missing", f"CUDA was asked for, but {built}; use --device cpu or auto")
        return "cpu", f"auto: {built}"
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    if need > free:
        sentence = f"it needs {need / 1e9:.1f} GB on the GPU, {name} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if wanted == "cuda":
            raise LoadFailure("too-big", "vram-need", sentence)
        return "cpu", f"auto: {sentence}"
    return "cuda", f"{'auto: ' if wanted == 'auto' else ''}{name} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} are needed"


def load_weights(request: dict[str, Any]) -> Weights:
    """(name, tensor) of the weights on the CPU, by weights_only=True whatever the file."""
    path = Path(request["path"])
    if request["format"] == "safetensors":
        return _map_safetensors(path, request["tensors"])
    if request["format"] == "torchscript":
        module = torch.jit.load(str(path), map_location="cpu")
        return [(name, tensor.detach()) for name, tensor in module.state_dict().items()]
    loaded = load_safely(path, request["allow"], device="cpu", mapped=bool(request["mmap"]))
    for key in request["weights_path"]:
        loaded = step_into(loaded, key)
    return _named(loaded)


def load_safely(path: Path, allowed: Iterable[str], *, device: str, mapped: bool) -> Any:
    """torch.load by weights_only=True, always; each name of *allowed* is an inert stand-in."""
    stand_ins = [(_Inert, name) for name in allowed if "." in name]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped or None)


def step_into(value: Any, key: str) -> Any:
    """What *value* has under *key*, a part of Inspection.weights_path."""
    if isinstance(value, dict):
        return value[key] if key in value else next(held for name, held in value.items() if key_name(name) == key)
    return value[int(key)]


def _named(value: Any) -> Weights:
    """Tensors of nested containers under dotted names, as `weights_key.find_weights` names them."""
    found: Weights = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, torch.Tensor):
            found.extend((f"{name}{part}", tensor) for part, tensor in _parts(node.detach()))
        elif isinstance(node, dict):
            if "state" in node and "param_groups" in node:
                return
            for key, child in node.items():
                visit(f"{name}.{key_name(key)}" if name else key_name(key), child)
        elif isinstance(node, list | tuple):
            for index, child in enumerate(node):
                visit(f"{name}.{index}" if name else str(index), child)

    visit("", value)
    return found


def _parts(tensor: torch.Tensor) -> Weights:
    """A tensor by itself; a sparse one as the dense ones it is saved as, named by their place in the arguments of torch._utils._rebuild_sparse_tensor."""
    if tensor.layout is torch.strided:
        return [("", tensor)]
    if tensor.layout is torch.sparse_coo:
        held = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        held = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    else:
        held = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [(f".1.{index}", part) for index, part in enumerate(held)]


def _map_safetensors(path: Path, rows: list[list[Any]]) -> Weights:
    found: Weights = []
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for name, shape, dtype, offset, nbytes in rows:
        kind = getattr(torch, dtype)
        flat = torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=offset) if nbytes else torch.empty(0, dtype=torch.uint8)
        # A header of odd length leaves tensors unaligned, and a view of another dtype must be aligned.
        item = kind.itemsize
        flat = flat if flat.data_ptr() % item == 0 else flat.clone()
        found.append((name, flat.view(kind).reshape(shape)))
    return found


def same_bytes(request: dict[str, Any], weights: Weights) -> None:
    """The first and last bytes of each storage as torch mapped it are those in the file where our own walk says they are.

    :raises ValueError: when they differ: torch and we read the container differently.
    """
    places: dict[str, tuple[int, int]] = {}
    twice: set[str] = set()
    for storage in request["storages"]:
        for name, *_ in storage["tensors"]:
            twice |= {name} if name in places else set()
            places[name] = (storage["offset"], storage["nbytes"])
    with Path(request["path"]).open("rb") as file:
        for name, tensor in weights:
            if name not in places or name in twice:
                continue  # the keys 1 and "1" have one name: which is which can't be told
            offset, nbytes = places[name]
            storage = tensor.untyped_storage()
            if request["format"] != "safetensors" and storage.nbytes() != nbytes:
                raise ValueError(f"{name} lies in {storage.nbytes()} bytes where the header tells {nbytes}")
            if request["format"] == "safetensors":
                continue
            for at in {0, max(0, nbytes - EDGE_BYTES)}:
                count = min(EDGE_BYTES, nbytes - at)
                file.seek(offset + at)
                if bytes(storage[at : at + count].tolist()) != file.read(count):
                    raise ValueError(f"{name} is mapped from another place than the header tells")


def move_to_cuda(weights: Weights) -> None:
    """All of them on the GPU at once, as a program would hold them, then freed."""
    moved = [tensor.to("cuda") for _, tensor in weights]
    torch.cuda.synchronize()
    del moved
    torch.cuda.empty_cache()
