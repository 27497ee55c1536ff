"""Good, broken, odd, foreign, untrusted and hostile weights files, built on the fly, each with the verdict it must get.

A case's builder gets the command that would leave a canary file behind if anything in the file were ever executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Bytes = bytes | dict[str, bytes]
"""A file, or several of one folder by name, the first being the one to inspect."""


@dataclass(frozen=True)
class Case:
    name: str
    verdict: str
    code: str
    """A reason that must be among those given; "" when there must be none but remarks."""
    make: Callable[[str], Bytes]
    format: str = ""
    file: str = "weights.pt"


CASES: list[Case] = []


def case(
    name: str, verdict: str, code: str = "", *, format: str = "", file: str = "weights.pt"
) -> Callable[[Callable[[str], Bytes]], None]:
    def add(make: Callable[[str], Bytes]) -> None:
        CASES.append(Case(name, verdict, code, make, format, file))

    return add


def load_all() -> list[Case]:
    from . import corpus_broken, corpus_good, corpus_hostile, corpus_odd  # noqa: F401 - each adds its cases

    return CASES
