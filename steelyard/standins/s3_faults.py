"""What goes wrong before an S3 server, said in a word: one fault, and the rule that says to which requests it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from steelyard.standins.s3_wire import Seen


@dataclass(frozen=True)
class Fault:
    """What to do to one request. *at*: a byte of the body; *seconds*: how long to be silent."""

    kind: Literal["reset", "answer", "lose", "flip-up", "flip-down", "cut-up", "cut-down", "stall"]
    at: int = 0
    status: int = 503
    seconds: float = 0.0


def reset() -> Fault:
    """The connection is reset before anything is passed on."""
    return Fault("reset")


def answer(status: int) -> Fault:
    """An error without asking the server."""
    return Fault("answer", status=status)


def lose() -> Fault:
    """The server does it, and its answer is lost."""
    return Fault("lose")


def flip_up(at: int) -> Fault:
    """One bit of byte *at* of the request's body is turned."""
    return Fault("flip-up", at=at)


def flip_down(at: int) -> Fault:
    """One bit of byte *at* of the answer's body is turned."""
    return Fault("flip-down", at=at)


def cut_up(at: int) -> Fault:
    """The connection breaks after *at* bytes of the request's body."""
    return Fault("cut-up", at=at)


def cut_down(at: int) -> Fault:
    """The connection breaks after *at* bytes of the answer's body."""
    return Fault("cut-down", at=at)


def stall(seconds: float, at: int = 0) -> Fault:
    """Silence after *at* bytes of the answer's body."""
    return Fault("stall", at=at, seconds=seconds)


@dataclass
class Rule:
    """Of the requests that fit, *skip* go well and *fault* is done to the next *times*; to none after *until* (monotonic)."""

    fault: Fault
    method: str
    key: str
    query: str
    header: str
    skip: int
    times: float
    until: float = float("inf")
    hits: int = field(default=0)

    def fits(self, seen: Seen) -> bool:
        return (
            (not self.method or self.method == seen.method)
            and self.key in seen.key
            and self.query in seen.query
            and self.header in seen.headers
        )


def flipped(block: bytes, at: int) -> bytes:
    return block[:at] + bytes([block[at] ^ 0x10]) + block[at + 1 :]
