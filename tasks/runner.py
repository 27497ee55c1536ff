"""The Run of a flow: each step as its task."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from steelyard.steps import run_here
from tasks.twins import TWINS

P = ParamSpec("P")
T = TypeVar("T")


def run_as_task(step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *step* as its task in this thread, with the task's retries; a step without one is called as without Prefect."""
    if step not in TWINS:
        _load_twins_of(step.__module__)
    twin = TWINS.get(step)
    if twin is None:
        return run_here(step, *args, **kwargs)
    result: T = twin(*args, **kwargs)
    return result


def _load_twins_of(module: str) -> None:
    """steelyard.backup -> tasks.backup: a flow loads the tasks it needs and no others."""
    name = f"tasks.{module.rpartition('.')[2]}"
    if module.startswith("steelyard.") and importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
