"""Steelyard's log lines in the Prefect UI: few enough that a person reads them, from whichever thread they come."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.context import TaskRunContext
from prefect.exceptions import FailedRun
from prefect.logging.handlers import APILogHandler

from steelyard.errors import SteelyardError
from steelyard.terminal import set_up_logging

PLAIN_LINES = 120
"""Ordinary lines of a run that go to the UI; the rest is on the machine's own stderr."""
ALL_LINES = 180
"""With warnings and errors; Prefect's own lines about the flow come on top, and the whole stays below 200."""


class Allowance:
    """How many more lines of this run the UI gets. Counts from any thread."""

    def __init__(self, plain: int = PLAIN_LINES, every: int = ALL_LINES) -> None:
        self._left = {"plain": plain, "every": every}
        self._lock = threading.Lock()
        self.held_back = 0

    def grants(self, record: logging.LogRecord) -> bool:
        with self._lock:
            fits = self._left["every"] > 0 and (record.levelno >= logging.WARNING or self._left["plain"] > 0)
            if not fits:
                self.held_back += 1
                return False
            self._left["every"] -= 1
            if record.levelno < logging.WARNING:
                self._left["plain"] -= 1
            return True


class _ToPrefect(APILogHandler):
    """Sends what the `steelyard` logger says to the flow run, and to the task run where the line comes from the task's own thread."""

    def __init__(self, flow_run_id: UUID, allowance: Allowance) -> None:
        super().__init__(logging.INFO)
        self._flow_run_id = flow_run_id
        self._allowance = allowance

    def emit(self, record: logging.LogRecord) -> None:
        if not self._allowance.grants(record):
            return
        told = copy.copy(record)
        told.flow_run_id = str(self._flow_run_id)
        context = TaskRunContext.get()
        told.task_run_id = str(context.task_run.id) if context else None
        super().emit(told)


class _OfTasks(logging.Filter):
    """Prefect's own lines about tasks: none for what went well, and no traceback where the error says in a sentence what is wrong."""

    def __init__(self, allowance: Allowance) -> None:
        super().__init__()
        self._allowance = allowance

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.INFO and record.getMessage().startswith("Finished in state Completed"):
            return False
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, SteelyardError):
            record.exc_info = record.exc_text = None
            record.msg, record.args = str(error), ()
        return self._allowance.grants(record)


class _OfFlows(logging.Filter):
    """On a worker Prefect raises a flow's own Failed state once more and logs that as an unexpected exception; it has been told already."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(error, FailedRun)


_of_flows = _OfFlows()


@contextmanager
def logs_in_prefect(flow_run_id: UUID) -> Iterator[None]:
    """While the block runs, the `steelyard` logger speaks in the UI too."""
    set_up_logging()
    allowance = Allowance()
    ours, theirs = logging.getLogger("steelyard"), logging.getLogger("prefect.task_runs")
    handler, of_tasks = _ToPrefect(flow_run_id, allowance), _OfTasks(allowance)
    ours.addHandler(handler)
    theirs.addFilter(of_tasks)
    # It stays: the line comes after the flow's end, and a filter is there once however often it is added.
    logging.getLogger("prefect.flow_runs").addFilter(_of_flows)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        theirs.removeFilter(of_tasks)
        if allowance.held_back:
            summary = ours.makeRecord(ours.name, logging.WARNING, "", 0, "%d more lines are not shown here", (allowance.held_back,), None)
            _ToPrefect(flow_run_id, Allowance(1, 1)).emit(summary)
