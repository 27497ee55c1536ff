"""SHA-256 that can be taken up in the middle, so that one file is proven on every core and not on one.

SHA-256 goes through a file in order and carries 32 bytes of state from block to block. Who once went through it can write the state down every 64 MiB; later
each stretch is proven by itself: from the state before it, it must lead to the state after it, and the last one to the digest. All stretches
together are the very computation of the whole digest, so the written states need not be trusted: a wrong one only fails.

hashlib keeps its state to itself. The library below it (OpenSSL's libcrypto) does not: SHA256_CTX is a public structure (openssl/sha.h), the
functions are old and still there. Where they are not, or don't do what hashlib does, `Sha256` is hashlib's and no states are kept.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, Self

MIB = 1 << 20
STRETCH_BYTES = 64 * MIB
"""States are this far apart: 32 bytes for each, and enough stretches in a large file for any number of cores."""


class Hash(Protocol):
    """What hashlib's objects have."""

    def update(self, data: memoryview | bytes, /) -> None: ...
    def copy(self) -> Self: ...
    def hexdigest(self) -> str: ...


class _Context(ctypes.Structure):
    """SHA256_CTX of openssl/sha.h: state, length in bits (low, high), block under way and its bytes, length of the digest."""

    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 16),
        ("in_block", ctypes.c_uint),
        ("digest_bytes", ctypes.c_uint),
    )


class StatefulSha256:
    """hashlib.sha256 with a state that can be read and set; from `begin`."""

    def __init__(self, library: Any, context: _Context) -> None:
        self._library = library
        self._context = context

    @classmethod
    def begin(cls, library: Any, state: bytes = b"", at: int = 0) -> Self:
        """At the start, or where *at* bytes (a multiple of 64) had led to *state*."""
        context = _Context()
        library.SHA256_Init(ctypes.byref(context))
        if state:
            for index in range(8):
                context.h[index] = int.from_bytes(state[4 * index : 4 * index + 4], "big")
            context.low, context.high = (at * 8) & 0xFFFFFFFF, (at * 8) >> 32
        return cls(library, context)

    def update(self, data: memoryview | bytes, /) -> None:
        view = memoryview(data)
        if not len(view):
            return
        # Of memory that may not be written ctypes takes no address, so that is copied: it is small files' bytes. The call lets go of the GIL.
        held = bytes(view) if view.readonly else ctypes.c_char.from_buffer(view)
        where = held if isinstance(held, bytes) else ctypes.addressof(held)
        self._library.SHA256_Update(ctypes.byref(self._context), where, view.nbytes)

    def state(self) -> bytes:
        """The state after the last whole block of 64 bytes."""
        return b"".join(int(word).to_bytes(4, "big") for word in self._context.h)

    def copy(self) -> Self:
        return type(self)(self._library, _Context.from_buffer_copy(self._context))

    def hexdigest(self) -> str:
        ended, digest = _Context.from_buffer_copy(self._context), (ctypes.c_ubyte * 32)()
        self._library.SHA256_Final(digest, ctypes.byref(ended))
        return bytes(digest).hex()


@functools.cache
def library() -> Any:
    """libcrypto, as hashlib has loaded it; None where it has no such functions or they do not do what hashlib does."""
    try:
        import _hashlib

        found = ctypes.CDLL(_hashlib.__file__)
        found.SHA256_Init.argtypes = [ctypes.c_void_p]
        found.SHA256_Update.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        found.SHA256_Final.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    return found if _agrees(found) else None


def _agrees(found: Any) -> bool:
    """Whether a digest taken up in the middle is hashlib's: another library may have another structure."""
    data = bytearray(range(251)) * 3
    first = StatefulSha256.begin(found)
    first.update(memoryview(data)[:128])
    second = StatefulSha256.begin(found, first.state(), 128)
    second.update(memoryview(data)[128:])
    right = hashlib.sha256(data).hexdigest()
    return second.hexdigest() == second.copy().hexdigest() == right


class RecordingSha256:
    """The SHA-256 of a file fed in order; `states` are those at each STRETCH_BYTES before its end, empty where they can't be told."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        # A file of one stretch has nothing to gain.
        found = library() if size_bytes > STRETCH_BYTES else None
        self._stateful = StatefulSha256.begin(found) if found is not None else None
        self._hash: Hash = self._stateful or hashlib.sha256()
        self._at = 0
        self.states: list[str] = []

    def update(self, data: memoryview | bytes, /) -> None:
        if self._stateful is None:
            self._hash.update(data)
            return
        rest = memoryview(data)
        while len(rest):
            take = min(len(rest), STRETCH_BYTES - self._at % STRETCH_BYTES)
            self._stateful.update(rest[:take])
            self._at += take
            rest = rest[take:]
            if self._at % STRETCH_BYTES == 0 and self._at < self._size_bytes:
                self.states.append(self._stateful.state().hex())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def stretches(size_bytes: int, states: Sequence[str]) -> list[tuple[int, int]]:
    """Half-open ranges that can be proven each by itself; none where *states* don't fit the size, or can't be used here."""
    found = [(start, min(start + STRETCH_BYTES, size_bytes)) for start in range(0, size_bytes, STRETCH_BYTES)]
    return found if len(found) > 1 and len(states) == len(found) - 1 and library() is not None else []


def at_stretch(index: int, states: Sequence[str]) -> StatefulSha256:
    """The digest as it stands where stretch *index* begins."""
    return StatefulSha256.begin(library(), bytes.fromhex(states[index - 1]) if index else b"", index * STRETCH_BYTES)
