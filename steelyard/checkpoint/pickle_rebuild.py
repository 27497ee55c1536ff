"""What torch's rebuild functions would make of their arguments, told without calling them (torch/_utils.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steelyard.checkpoint.dtypes import ITEM_BYTES, STORAGE_DTYPE
from steelyard.checkpoint.pickle_values import Global, Opaque, PDict, PStorage, PTensor
from steelyard.checkpoint.reasons import NotWeights, shown

_MAX_DIMS = 64
NESTED_STORAGE = "torch.storage._load_from_bytes"
_ARGUMENTS: dict[str, tuple[int, int]] = {
    "torch._utils._rebuild_tensor": (4, 4),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_tensor_v3": (7, 8),
    "torch._utils._rebuild_qtensor": (7, 7),
    "torch._utils._rebuild_parameter": (3, 3),
    "torch._utils._rebuild_parameter_with_state": (4, 4),
    "torch._utils._rebuild_meta_tensor_no_storage": (4, 4),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": (4, 4),
    "torch._tensor._rebuild_from_type_v2": (4, 4),
    "torch.Size": (0, 1),
    "collections.OrderedDict": (0, 1),
}
"""Least and most arguments each takes."""


Spend = Callable[[int], None]
"""Told before so many elements are copied; raises when the pickle has had its share."""


def rebuilt(function: Any, args: Any, spend: Spend) -> Any:
    """The description of ``function(*args)``. Unknown functions give an Opaque that keeps its arguments.

    :raises NotWeights: "pickle-broken" when a tensor's arguments can't be what they must be.
    """
    if not isinstance(args, tuple):
        raise NotWeights("pickle-broken", "a call whose arguments are no tuple")
    if not isinstance(function, Global):
        return Opaque("a value", args)
    path = function.path
    least, most = _ARGUMENTS.get(path, (0, 1 << 62))
    if not least <= len(args) <= most:
        raise NotWeights("pickle-broken", f"{path} with {len(args)} arguments")
    if path == "torch._tensor._rebuild_from_type_v2":
        if isinstance(args[0], Global) and args[0].path == path:
            raise NotWeights("pickle-broken", f"{path} of itself")
        return rebuilt(args[0], args[2], spend)
    if path in ("collections.OrderedDict", "collections.Counter", "builtins.dict"):
        return _dict(args, spend)
    if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter") and args:
        return args[0] if isinstance(args[0], PTensor) else Opaque(path, args)
    if path == "torch._utils._rebuild_device_tensor_from_cpu_tensor" and args and isinstance(args[0], PTensor):
        return args[0]
    if path in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_qtensor"):
        return _tensor(path, args, None)
    if path == "torch._utils._rebuild_tensor_v3":
        return _tensor(path, args, _dtype(args[6]))
    if path == "torch._utils._rebuild_meta_tensor_no_storage":
        return PTensor(None, _dtype(args[0]), 0, _ints(args[1], path), _ints(args[2], path))
    if path == "torch.Size" and len(args) == 1 and isinstance(args[0], tuple | list):
        spend(len(args[0]))
        return tuple(args[0])
    if path == "_codecs.encode" and len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1":
        return args[0].encode("latin-1")  # how protocol 2 writes bytes
    return Opaque(path, args)


def stored(pid: Any) -> PStorage:
    """The storage that a persistent id names: ("storage", type, key, location, numel[, view]).

    :raises NotWeights: "module-source" for the legacy ("module", class, file, source); "pickle-broken" for anything else.
    """
    if not isinstance(pid, tuple) or not pid:
        raise NotWeights("pickle-broken", "a persistent id that is no storage")
    tag = _text(pid[0])
    if tag == "module":
        raise NotWeights("module-source", "it carries the source of a module, which only an unsafe load takes")
    if tag != "storage" or len(pid) not in (5, 6):
        raise NotWeights("pickle-broken", "a persistent id that is no storage")
    kind, key, location, numel = pid[1], pid[2], _text(pid[3]), pid[4]
    key = key if isinstance(key, str) else str(key) if isinstance(key, int) else _text(key)
    if not isinstance(kind, Global) or type(numel) is not int or numel < 0 or not key:
        raise NotWeights("pickle-broken", "a storage whose type, key or size is not what it must be")
    dtype = STORAGE_DTYPE.get(kind.name)
    if dtype is None:
        raise NotWeights("unknown-dtype", f"a storage of type {shown(kind.path)}, whose element size is not known")
    if len(pid) == 6 and pid[5] is not None:
        raise NotWeights("pickle-broken", "a storage view inside a persistent id; torch has not written these since 0.4")
    return PStorage(key, dtype, numel, location, untyped=kind.name == "UntypedStorage")


def _dict(args: tuple[Any, ...], spend: Spend) -> PDict:
    made = PDict(ordered=True)
    if args and isinstance(args[0], list):
        spend(len(args[0]))
        made.put([(pair[0], pair[1]) for pair in args[0] if isinstance(pair, tuple | list) and len(pair) == 2])
    elif args and isinstance(args[0], PDict):
        spend(len(args[0].pairs))
        made.put(list(args[0].pairs))
    return made


def _tensor(path: str, args: tuple[Any, ...], dtype: str | None) -> PTensor | Opaque:
    if isinstance(args[0], Opaque) and args[0].made_by == NESTED_STORAGE:
        return Opaque(path, args)  # pickle.dump of a tensor: its storage is a checkpoint of its own, in the pickle's bytes
    if not isinstance(args[0], PStorage):
        raise NotWeights("pickle-broken", f"{path} without a storage")
    storage, offset = args[0], args[1]
    shape, stride = _ints(args[2], path), _ints(args[3], path)
    grad = args[4:5] if path.endswith(("_v2", "_v3")) else ()
    metadata = args[6] if path.endswith("_v2") and len(args) > 6 else args[7] if path.endswith("_v3") and len(args) > 7 else None
    if not (metadata is None or isinstance(metadata, PDict)):
        raise NotWeights("pickle-broken", f"{path} with metadata that is no dict")
    if type(offset) is not int or offset < 0 or len(shape) != len(stride) or not all(isinstance(flag, bool) for flag in grad):
        raise NotWeights("pickle-broken", f"{path} with an offset, shape or stride that can't be")
    return PTensor(storage, dtype or storage.dtype, offset, shape, stride)


def _ints(value: Any, path: str) -> tuple[int, ...]:
    # 2**62 keeps every product of a few of them cheap; no real dimension comes near.
    if isinstance(value, tuple | list) and len(value) <= _MAX_DIMS and all(type(v) is int and 0 <= v < 2**62 for v in value):
        return tuple(value)
    raise NotWeights("pickle-broken", f"{path} with a shape or stride that can't be")


def _dtype(value: Any) -> str:
    if isinstance(value, Global) and value.module == "torch" and value.name in ITEM_BYTES:
        return value.name
    raise NotWeights("unknown-dtype", f"a tensor of dtype {shown(value.path) if isinstance(value, Global) else 'unknown'}")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else ""
