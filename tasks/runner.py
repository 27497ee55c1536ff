"""The Run of a flow: each step as its task."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect.context import FlowRunContext

import tasks
from steelyard.steps import run_here
from tasks.twins import TWINS

P = ParamSpec("P")
T = TypeVar("T")

MOST_TASKS = 200
"""Tasks of one run for steps that move little. A round over hundreds of models stays readable, and Prefect's share of its time small."""
LARGE_BYTES = 64 * 1024**2
"""A step over files of this size together is always a task: it takes long enough for someone to look."""

_begun: dict[UUID, int] = {}


def run_as_task(step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *step* as its task in this thread, with the task's retries; a step without one, or one too many, is called as without Prefect."""
    if step not in TWINS:
        _load_twins_of(step)
    twin = TWINS.get(step)
    if twin is None or not (_fits() or _size([*args, *kwargs.values()]) >= LARGE_BYTES):
        return run_here(step, *args, **kwargs)
    result: T = twin(*args, **kwargs)
    return result


def _load_twins_of(step: Callable[..., Any]) -> None:
    """Load the module that has the task of *step*: tasks.backup for a step of steelyard.backup; every one where it is not there."""
    likely = f"tasks.{step.__module__.rpartition('.')[2]}"
    for name in sorted((f"tasks.{found.name}" for found in pkgutil.iter_modules(tasks.__path__)), key=lambda name: name != likely):
        importlib.import_module(name)
        if step in TWINS:
            return


def _fits() -> bool:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    count = _begun[context.flow_run.id] = _begun.get(context.flow_run.id, 0) + 1
    return count <= MOST_TASKS


def _size(arguments: Iterable[Any]) -> int:
    """Bytes of the files that a step is given, one by one or as a list; a manifest or a lock is only its background."""
    total = 0
    for one in arguments:
        for item in one if isinstance(one, list | tuple) else (one,):
            size = getattr(item, "size_bytes", 0) if hasattr(item, "path") else 0
            total += size if isinstance(size, int) else 0
    return total
