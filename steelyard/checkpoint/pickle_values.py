"""What the pickle walk builds instead of objects: plain descriptions, nothing imported, nothing called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Global:
    """A name that the pickle would import."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


class PDict:
    """A dict as pairs: keys may be anything, and no hash of a stranger's key is ever taken (crafted integers collide)."""

    __slots__ = ("ordered", "pairs", "state")

    def __init__(self, *, ordered: bool = False) -> None:
        self.ordered = ordered
        self.pairs: Sequence[tuple[Any, Any]] = ()  # a stranger may ask for a million empty dicts: they have no list each

    def put(self, pairs: list[tuple[Any, Any]]) -> None:
        if isinstance(self.pairs, list):
            self.pairs.extend(pairs)
        else:
            self.pairs = pairs
        self.state: Any = None


class Opaque:
    """The result of something the walk does not model: a call, or an object built from a class."""

    __slots__ = ("args", "made_by", "state")

    def __init__(self, made_by: str, args: Any = None) -> None:
        self.made_by = made_by
        self.args = args
        self.state: Any = None


class PStorage:
    """A storage named by a persistent id: *numel* elements of *dtype*, bytes to be found under *key*."""

    __slots__ = ("dtype", "key", "location", "numel", "untyped")

    def __init__(self, key: str, dtype: str, numel: int, location: str, *, untyped: bool) -> None:
        self.key = key
        self.dtype = dtype
        self.numel = numel
        self.location = location
        self.untyped = untyped


class PTensor:
    """A tensor as its rebuild call describes it; *offset* and *stride* in elements. No storage means a meta tensor."""

    __slots__ = ("dtype", "offset", "shape", "storage", "stride")

    def __init__(self, storage: PStorage | None, dtype: str, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage = storage
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.stride = stride
