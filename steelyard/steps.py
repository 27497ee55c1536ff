"""How a verb runs its steps: by calling them here, or as tasks of a flow. The order of steps is written once, in the verb."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from steelyard.errors import SteelyardError, Unreachable
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

P = ParamSpec("P")
T = TypeVar("T")

TRIES = 3
"""How often a step is tried when weather stops it, here as in tasks."""
FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 300.0
"""What the other side may ask us to wait, all tries together; who waits at a terminal is told of a longer wait at once."""


class Run(Protocol):
    """Executes one step: a plain function over one file and one phase."""

    def __call__(self, step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


def is_weather(error: BaseException) -> bool:
    """Whether the same step may succeed in a minute. Corruption, refusals and a missing token never do."""
    return isinstance(error, SteelyardError) and error.transient


def run_here(step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call *step*; on weather wait (exponential, with jitter) and call it again. A step has waited out short squalls by itself already."""
    left_s = LONGEST_WAIT_S
    for attempt in range(1, TRIES + 1):
        try:
            return step(*args, **kwargs)
        except SteelyardError as error:
            if not is_weather(error) or attempt == TRIES or getattr(error, "endured", False):
                raise
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311
            if isinstance(error, Unreachable) and error.retry_after_s is not None:
                wait_s = error.retry_after_s
                left_s -= wait_s
                if left_s < 0:
                    raise
            log.warning("%s; trying again in %.0f s (%d of %d)", error, wait_s, attempt + 1, TRIES)
            current_watch().pause(wait_s)
    raise AssertionError("the last try returns or raises")
