"""Where the weights are in what a pickle holds, and what else is in there.

Real files wrap them in many ways: {state_dict}, {model, optimizer, step}, {model: {state_dict, …}}, or bare. The rule: the dict with most
tensor bytes wins, optimizer state never does; among equals `state_dict`, then `model`, then the rest in the file's order, a moving
average last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from steelyard.checkpoint.dtypes import ITEM_BYTES
from steelyard.checkpoint.pickle_values import Opaque, PDict, PTensor
from steelyard.checkpoint.reasons import NotWeights

MAX_NODES = 250_000
MAX_DEPTH = 64

Path = tuple[str, ...]

_NEVER_WEIGHTS = ("optim", "opt_state", "lr_sched", "scheduler", "grad_scaler", "scaler", "amp", "rng", "loops", "callbacks")
_INSIDE_MODULES = ("_modules", "_parameters", "_buffers")
_FIRST = {"state_dict": 0, "model": 1}


@dataclass(slots=True)
class Weights:
    """The split: *tensors* with names relative to *path*, and what is elsewhere as full paths."""

    path: Path = ()
    tensors: list[tuple[str, PTensor]] = field(default_factory=list)
    others: list[tuple[Path, PTensor]] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)


def find_weights(value: Any) -> Weights:
    """Split every tensor in *value* into the weights and the rest.

    :raises NotWeights: "pickle-bomb" when the structure is so deep or so often shared that walking it has no end.
    """
    tree = _Tree()
    tree.collect(value)
    path = _chosen(tree)
    depth = len(path)
    found = Weights(path, duplicates=tree.duplicates)
    for where, tensor in tree.leaves:
        if where[:depth] == path and not _set_aside(tree, where, depth):
            found.tensors.append((".".join(where[depth:]), tensor))
        else:
            found.others.append((where, tensor))
    return found


class _Tree:
    def __init__(self) -> None:
        self.leaves: list[tuple[Path, PTensor]] = []
        self.optimizers: set[Path] = set()
        self.duplicates: list[str] = []
        self._seen: set[int] = set()

    def collect(self, root: Any) -> None:
        # An explicit stack: a stranger decides how deep this nests. Children are pushed in reverse to keep the file's order.
        pending: list[tuple[Path, Any, bool]] = [((), root, False)]
        nodes = 0
        while pending:
            path, node, inside = pending.pop()
            if isinstance(node, PTensor):
                self.leaves.append((path or ("",), node))
                continue
            nodes += 1
            if nodes > MAX_NODES or len(path) > MAX_DEPTH:
                raise NotWeights("pickle-bomb", "its containers are nested or shared so often that walking them has no end")
            if isinstance(node, list | Opaque):
                if id(node) in self._seen:
                    continue
                self._seen.add(id(node))
            children = list(self._children(path, node))
            inside = inside or isinstance(node, Opaque)
            for name, child in reversed(children):
                if isinstance(child, PTensor | PDict | Opaque | list | tuple):
                    pending.append((_joined(path, name, inside), child, inside))

    def _children(self, path: Path, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, PDict):
            named: dict[tuple[Any, str], Any] = {}
            for key, value in node.pairs:
                # Keys are the same only where Python would say so: 1 and "1" are two, and so are two objects that we know nothing of.
                same = (type(key) if isinstance(key, str | bytes | int | float) else id(key), key_name(key))
                if same in named and isinstance(value, PTensor):
                    self.duplicates.append(same[1])
                named[same] = value
            names = {name for _, name in named}
            if "param_groups" in names and "state" in names:
                self.optimizers.add(path)
            yield from ((name, value) for (_, name), value in named.items())
        elif isinstance(node, list | tuple):
            yield from ((str(index), child) for index, child in enumerate(node))
        elif isinstance(node, Opaque):
            for part in (node.args, node.state):
                if isinstance(part, PDict):
                    yield from self._children(path, part)
                elif part is not None:
                    yield "", part


def _joined(path: Path, name: str, inside: bool) -> Path:
    if not inside:
        return (*path, name)
    if name in _INSIDE_MODULES or name == "":
        return path
    # Inside an object the attribute path is one name, as its state_dict would have it.
    return (f"{path[0]}.{name}",) if len(path) == 1 else (*path[:-1], f"{path[-1]}.{name}") if path else (name,)


def key_name(key: Any, depth: int = 0) -> str:
    """What a dict's key is called in a dotted name; the same for our description of a pickle and for what torch makes of it."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool | int | float):
        return str(key)
    if isinstance(key, bytes):
        return key.decode("latin-1") if len(key) < 4096 else "(bytes)"
    if isinstance(key, tuple) and depth < 4 and len(key) <= 16:
        return f"({', '.join(key_name(part, depth + 1) for part in key)})"
    return "(object)"


def tensor_bytes(tensor: PTensor) -> int:
    """Bytes of its elements, no more than its storage has: an expanded view must not outweigh the weights."""
    item = ITEM_BYTES.get(tensor.dtype, 1)
    size = math.prod(tensor.shape) * item
    return int(min(size, tensor.storage.numel * ITEM_BYTES.get(tensor.storage.dtype, 1))) if tensor.storage else int(size)


def _set_aside(tree: _Tree, path: Path, depth: int) -> bool:
    """Below the chosen dict, a nested optimizer or a nested dict beside direct tensors is not part of the weights."""
    return any(path[:length] in tree.optimizers for length in range(depth, len(path))) or (
        len(path) > depth + 1 and path[depth].lower().startswith(_NEVER_WEIGHTS)
    )


def _chosen(tree: _Tree) -> Path:
    path: Path = ()
    leaves = tree.leaves
    while True:
        depth = len(path)
        direct = 0
        groups: dict[str, int] = {}
        for where, tensor in leaves:
            if len(where) == depth + 1:
                direct += tensor_bytes(tensor)
            elif (*path, where[depth]) not in tree.optimizers and not where[depth].lower().startswith(_NEVER_WEIGHTS):
                groups[where[depth]] = groups.get(where[depth], 0) + tensor_bytes(tensor)
        if not groups:
            return path
        best = min(groups, key=lambda name: (-groups[name], _rank(name)))  # min takes the first of equals: the file's order
        if direct >= groups[best]:
            return path
        path = (*path, best)
        leaves = [(where, tensor) for where, tensor in leaves if where[: depth + 1] == path]


def _rank(name: str) -> int:
    return 9 if "ema" in name.lower().replace("-", "_").split("_") else _FIRST.get(name, 2)
