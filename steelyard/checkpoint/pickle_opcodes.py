"""The pickle opcodes as steps of an abstract machine: each does to descriptions what the real one would do to objects.

Nothing is imported, nothing called, no key of the file hashed; every stack, string and count has a bound.
Source: Lib/pickletools.py for the meaning, torch/_weights_only_unpickler.py for the subset that a safe load takes.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from steelyard.checkpoint.pickle_rebuild import NESTED_STORAGE, rebuilt, stored
from steelyard.checkpoint.pickle_values import Global, Opaque, PDict, PStorage
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.trust import normal_name

MAX_OPEN_MARKS = 500
MAX_LINE_BYTES = 4096
MAX_GLOBALS = 2000
MAX_COPIED = 1_000_000
MAX_LONG_BYTES = 32
MAX_TEXT_BYTES = 64 * 1024


class Truncated(Exception):
    """The data ended inside the pickle; with more bytes the walk may succeed."""


@dataclass(slots=True)
class PickleWalk:
    """What one stream says: its *value* described, the *globals* it names, where it *end*s (one past STOP), and what is wrong."""

    value: Any = None
    end: int = 0
    globals: dict[str, str] = field(default_factory=dict)
    storages: dict[str, PStorage] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    opcodes: int = 0
    complete: bool = False


class Machine:
    def __init__(self, data: bytes, start: int, max_opcodes: int) -> None:
        self.data = data
        self.position = start
        self.limit = max_opcodes
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.named: dict[str, None] = {}
        self.copied = 0
        self.unsafe_opcodes: set[str] = set()
        self.calls_value = False
        self.nested: list[Any] = []
        """What torch.storage._load_from_bytes would be called with."""
        self.found = PickleWalk()

    def run(self) -> None:
        data, end, handlers, safe = self.data, len(self.data), HANDLERS, SAFE
        count = 0
        while True:
            if self.position >= end:
                raise Truncated
            code = data[self.position]
            self.position += 1
            count += 1
            if code == 0x2E:  # STOP
                self.found.value = self.stack.pop()
                self.found.end = self.position
                self.found.opcodes = count
                self.found.complete = True
                if self.stack or self.marks:
                    raise NotWeights("pickle-broken", "it leaves values behind that belong to nothing")
                return
            handler = handlers[code]
            if handler is None:
                raise NotWeights("pickle-broken", f"byte {self.position - 1} is no pickle opcode (0x{code:02x})")
            if not safe[code]:
                self.unsafe_opcodes.add(NAMES[code])
            if count > self.limit:
                raise NotWeights("pickle-too-long", f"a pickle of more than {self.limit} opcodes")
            handler(self)

    # -- reading arguments

    def take(self, length: int) -> bytes:
        start = self.position
        if start + length > len(self.data):
            raise Truncated
        self.position = start + length
        return self.data[start : start + length]

    def number(self, form: str, length: int) -> int:
        value: int = struct.unpack(form, self.take(length))[0]
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE_BYTES)
        if end < 0:
            if len(self.data) - self.position < MAX_LINE_BYTES:
                raise Truncated
            raise NotWeights("pickle-broken", f"a text argument without an end at byte {self.position}")
        raw = self.data[self.position : end]
        self.position = end + 1
        return raw.decode("utf-8")

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def name(self, module: str, name: str) -> Global:
        known = self.names.get((module, name))
        if known is None:
            known = self.names[module, name] = Global(*normal_name(module, name))
            self.named[known.path] = None
            if len(self.names) > MAX_GLOBALS:
                raise NotWeights("pickle-bomb", f"it names more than {MAX_GLOBALS} different globals")
        return known

    def spend(self, count: int) -> None:
        self.copied += count
        if self.copied > MAX_COPIED:
            raise NotWeights("pickle-bomb", "it copies its containers over and over")


Handler = Callable[[Machine], None]
HANDLERS: list[Handler | None] = [None] * 256
SAFE: list[bool] = [False] * 256
NAMES: dict[int, str] = {
    value[0]: name for name, value in vars(pickle).items() if isinstance(value, bytes) and len(value) == 1 and name.isupper()
}


def _on(opcode: bytes, handler: Handler, *, safe: bool = False) -> None:
    HANDLERS[opcode[0]] = handler
    SAFE[opcode[0]] = safe


def _push(value: Any) -> Handler:
    return lambda m: m.stack.append(value)


def _number(form: str, length: int) -> Handler:
    unpack = struct.Struct(form).unpack
    return lambda m: m.stack.append(unpack(m.take(length))[0])


def _mark(m: Machine) -> None:
    if len(m.marks) >= MAX_OPEN_MARKS:
        raise NotWeights("pickle-bomb", f"a pickle nested more than {MAX_OPEN_MARKS} deep")
    m.marks.append(m.stack)
    m.stack = []


def _tuple(m: Machine) -> None:
    items = tuple(m.since_mark())
    m.stack.append(items)


def _last(count: int) -> Handler:
    def handler(m: Machine) -> None:
        if len(m.stack) < count:
            raise IndexError
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return handler


def _append(m: Machine) -> None:
    item = m.stack.pop()
    _extend(m, [item])


def _appends(m: Machine) -> None:
    _extend(m, m.since_mark())


def _extend(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Opaque):
        target.args = (target.args, tuple(items))
    else:
        raise TypeError


def _set_items(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if len(items) % 2:
        raise ValueError
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if not all(isinstance(key, str) or _hashable(key) for key, _ in pairs):
        raise TypeError
    if isinstance(target, PDict):
        target.put(pairs)
    elif isinstance(target, Opaque):
        held = PDict()
        held.put(pairs)
        target.args = (target.args, held)
    else:
        raise TypeError


def _hashable(key: Any, depth: int = 0) -> bool:
    """Whether a real dict would take *key*."""
    if isinstance(key, tuple):
        return depth < 8 and all(_hashable(part, depth + 1) for part in key[:64])
    return not isinstance(key, list | PDict)


def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if isinstance(target, Opaque) or (isinstance(target, PDict) and target.ordered and isinstance(state, PDict)):
        target.state = state
    elif isinstance(target, Global):
        raise NotWeights("calls-a-value", f"it would set attributes on {shown(target.path)} itself")
    else:
        # A tensor would get other bytes than those it was built from; the rest takes no state at all.
        raise TypeError


def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    function = m.stack.pop()
    if not isinstance(function, Global):
        m.calls_value = True
    elif function.path == NESTED_STORAGE:
        m.nested.append(args[0] if isinstance(args, tuple) and len(args) == 1 else None)
    m.stack.append(rebuilt(function, args, m.spend))


def _newobj_ex(m: Machine) -> None:
    kwargs, args = m.stack.pop(), m.stack.pop()
    function = m.stack.pop()
    m.stack.append(Opaque(function.path if isinstance(function, Global) else "a value", (args, kwargs)))


def _inst(m: Machine) -> None:
    function = m.name(m.line(), m.line())
    args = tuple(m.since_mark())
    m.nested += [None] if function.path == NESTED_STORAGE else []
    m.stack.append(rebuilt(function, args, m.spend))


def _obj(m: Machine) -> None:
    items = m.since_mark()
    m.nested += [None] if isinstance(items[0], Global) and items[0].path == NESTED_STORAGE else []
    m.stack.append(rebuilt(items[0], tuple(items[1:]), m.spend))


def _global(m: Machine) -> None:
    m.stack.append(m.name(m.line(), m.line()))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > MAX_LINE_BYTES:
        raise TypeError
    m.stack.append(m.name(module, name))


def _extension(length: int) -> Handler:
    def handler(m: Machine) -> None:
        m.take(length)
        raise NotWeights("extension-registry", "it calls by number into the registry of the program that loads it")

    return handler


def _memo_put(index: Callable[[Machine], int]) -> Handler:
    def handler(m: Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return handler


def _memo_get(index: Callable[[Machine], int]) -> Handler:
    def handler(m: Machine) -> None:
        key = index(m)
        if key not in m.memo:
            raise ValueError
        m.stack.append(m.memo[key])

    return handler


def _text_index(m: Machine) -> int:
    return _int_of(m.line())


def _int_of(text: str) -> int:
    if len(text) > 80:
        raise ValueError
    return int(text.removesuffix("L"))


def _int_line(m: Machine) -> None:
    text = m.line()
    m.stack.append({"00": False, "01": True}[text] if text in ("00", "01") else _int_of(text))


def _long(length: int) -> Handler:
    def handler(m: Machine) -> None:
        data = m.take(m.number({1: "<B", 4: "<i"}[length], length))
        # A number of a million digits is no tensor's size; keeping its bytes avoids arithmetic on it.
        m.stack.append(int.from_bytes(data, "little", signed=True) if len(data) <= MAX_LONG_BYTES else Opaque("a long number"))

    return handler


def _text(form: str, length: int) -> Handler:
    def handler(m: Machine) -> None:
        raw = m.take(m.number(form, length))
        # A text of megabytes (a workflow, a tokenizer) is no name; keeping it would cost up to four times its size.
        m.stack.append(raw.decode("utf-8", "surrogatepass") if len(raw) <= MAX_TEXT_BYTES else Opaque("a long text"))

    return handler


def _bytes(form: str, length: int) -> Handler:
    return lambda m: m.stack.append(m.take(m.number(form, length)))


def _py2_string(form: str, length: int) -> Handler:
    return lambda m: m.stack.append(m.take(m.number(form, length)).decode("latin-1"))


def _dict_since_mark(m: Machine) -> None:
    items = m.since_mark()
    m.stack.append(PDict())
    _set_items(m, items)


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


def _persid(m: Machine) -> None:
    storage = stored(m.stack.pop())
    known = m.found.storages.setdefault(storage.key, storage)
    if (known.numel, known.dtype, known.untyped) != (storage.numel, storage.dtype, storage.untyped):
        raise NotWeights("storage-conflict", f"storage {shown(storage.key)} is given two sizes or element types")
    m.stack.append(known)


for _opcode, _handler in {
    pickle.MARK: _mark, pickle.TUPLE: _tuple, pickle.TUPLE1: _last(1), pickle.TUPLE2: _last(2), pickle.TUPLE3: _last(3),
    pickle.EMPTY_TUPLE: _push(()), pickle.EMPTY_LIST: lambda m: m.stack.append([]), pickle.EMPTY_DICT: lambda m: m.stack.append(PDict()),
    pickle.EMPTY_SET: lambda m: m.stack.append([]), pickle.NONE: _push(None), pickle.NEWTRUE: _push(True), pickle.NEWFALSE: _push(False),
    pickle.BININT: _number("<i", 4), pickle.BININT1: _number("<B", 1), pickle.BININT2: _number("<H", 2), pickle.BINFLOAT: _number(">d", 8),
    pickle.LONG1: _long(1), pickle.BINUNICODE: _text("<I", 4), pickle.SHORT_BINSTRING: _py2_string("<B", 1),
    pickle.APPEND: _append, pickle.APPENDS: _appends, pickle.SETITEM: _setitem, pickle.SETITEMS: lambda m: _set_items(m, m.since_mark()),
    pickle.BUILD: _build, pickle.REDUCE: _reduce, pickle.NEWOBJ: _reduce, pickle.GLOBAL: _global, pickle.BINPERSID: _persid,
    pickle.BINPUT: _memo_put(lambda m: m.number("<B", 1)), pickle.LONG_BINPUT: _memo_put(lambda m: m.number("<I", 4)),
    pickle.BINGET: _memo_get(lambda m: m.number("<B", 1)), pickle.LONG_BINGET: _memo_get(lambda m: m.number("<I", 4)),
    pickle.PROTO: lambda m: m.take(1),
}.items():  # fmt: skip
    _on(_opcode, _handler, safe=True)

# Opcodes that torch's safe loader refuses. They are walked all the same: a file that hides a call behind them is to be named.
for _opcode, _handler in {
    pickle.INST: _inst, pickle.OBJ: _obj, pickle.STACK_GLOBAL: _stack_global, pickle.NEWOBJ_EX: _newobj_ex,
    pickle.EXT1: _extension(1), pickle.EXT2: _extension(2), pickle.EXT4: _extension(4),
    pickle.PERSID: lambda m: m.stack.append(Opaque("persistent id", m.line())),
    pickle.PUT: _memo_put(_text_index), pickle.GET: _memo_get(_text_index), pickle.MEMOIZE: _memo_put(lambda m: len(m.memo)),
    pickle.INT: _int_line, pickle.LONG: lambda m: m.stack.append(_int_of(m.line())), pickle.FLOAT: lambda m: m.stack.append(float(m.line())),
    pickle.LONG4: _long(4), pickle.STRING: lambda m: m.stack.append(m.line().strip("'\"")), pickle.UNICODE: lambda m: m.stack.append(m.line()),
    pickle.BINSTRING: _py2_string("<i", 4), pickle.BINBYTES: _bytes("<I", 4), pickle.SHORT_BINBYTES: _bytes("<B", 1),
    pickle.BINBYTES8: _bytes("<Q", 8), pickle.BYTEARRAY8: _bytes("<Q", 8), pickle.SHORT_BINUNICODE: _text("<B", 1),
    pickle.BINUNICODE8: _text("<Q", 8), pickle.FRAME: lambda m: m.take(8), pickle.POP: _pop, pickle.POP_MARK: lambda m: m.since_mark(),
    pickle.DUP: lambda m: m.stack.append(m.stack[-1]), pickle.LIST: lambda m: m.stack.append(list(m.since_mark())),
    pickle.DICT: _dict_since_mark, pickle.ADDITEMS: _appends, pickle.FROZENSET: lambda m: m.stack.append(list(m.since_mark())),
    pickle.NEXT_BUFFER: _push(None), pickle.READONLY_BUFFER: lambda m: None,
}.items():  # fmt: skip
    _on(_opcode, _handler)
