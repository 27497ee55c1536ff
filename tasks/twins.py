"""What makes a step a task: its retries, when they are worth it, its name in the UI, and that nothing of it is cached or stored."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from steelyard.errors import Unreachable
from steelyard.steps import FIRST_WAIT_S, TRIES, is_weather
from steelyard.watch import current_watch

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_WAIT_S = 300.0
"""The longest wait asked for by the other side that a task sits out."""


def worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Weather is tried again, corruption and refusals never are. A longer wait that the other side asked for is sat out here first."""
    error = state.data
    if not isinstance(error, BaseException) or not is_weather(error):
        return False
    if isinstance(error, Unreachable) and error.retry_after_s:
        # Prefect's own delays are fixed when the task is made.
        current_watch().pause(min(error.retry_after_s, LONGEST_WAIT_S))
    return True


@dataclass(frozen=True)
class Twin(Generic[P, T]):
    """The task of one step. *run_name* gets the step's arguments and says what the UI shows."""

    step: Callable[P, T]
    task: Task[P, T]
    run_name: Callable[P, str]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the step as a task, here and now, in the calling thread: a cancel then reaches it at once."""
        title = self.run_name(*args, **kwargs)
        named = self.task.with_options(task_run_name=lambda: title)
        # Quoted: Prefect would walk through every piece of a manifest, looking for futures.
        return named(*(quote(one) for one in args), **{key: quote(one) for key, one in kwargs.items()})  # type: ignore[arg-type]


def _tagging(step: Callable[P, T], tags: Iterable[str]) -> Callable[P, T]:
    """*step*, which tags its own task run by verb, model and copy once it runs.

    A task that has its tags from the start asks the server for a concurrency slot for each before it begins: two seconds a task where the
    server is busy with SQLite (measured), and a server that is away would stop the work.
    """
    signature = inspect.signature(step)

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        context = TaskRunContext.get()
        if context is not None:
            given = signature.bind(*args, **kwargs).arguments
            model = given.get("model") or getattr(given.get("manifest"), "model", None)
            copy = given.get("copy") or given.get("name")
            context.task_run.tags = sorted({*tags, *(str(one) for one in (model, copy) if one)})
        return step(*args, **kwargs)

    return run


TWINS: dict[Callable[..., Any], Twin[..., Any]] = {}


def twin(step: Callable[P, T], name: str, run_name: Callable[P, str], *tags: str) -> Twin[P, T]:
    """Register the task of *step*, known as *name* in the UI."""
    made: Task[P, T] = Task(
        fn=_tagging(step, tags),
        name=name,
        retries=TRIES - 1,
        retry_delay_seconds=exponential_backoff(backoff_factor=FIRST_WAIT_S),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_a_retry,
        # A step has effects: the disk says what is done, not a cache. Weights and manifests are no results to keep.
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    TWINS[step] = found = Twin(step, made, run_name)
    return found


def some(paths: list[str]) -> str:
    """A file's name, or how many there are."""
    return paths[0] if len(paths) == 1 else f"{len(paths)} files"
