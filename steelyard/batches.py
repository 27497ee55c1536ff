"""Which files go into one step: a large file alone, small ones together, so that a run has few and telling tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def size_bytes(self) -> int: ...


F = TypeVar("F", bound=Sized)

ALONE_BYTES = 64 * 1024**2


def batches(files: Iterable[F]) -> list[Sequence[F]]:
    """Each file of 64 MiB or more by itself, all others in one batch at the front."""
    small: list[F] = []
    large: list[Sequence[F]] = []
    for file in files:
        if file.size_bytes < ALONE_BYTES:
            small.append(file)
        else:
            large.append([file])
    return [small, *large] if small else large
