"""The terminal: tables on stdout, progress and errors on stderr; one JSON document on stdout where it was asked for."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import orjson

from steelyard.disk import gb
from steelyard.errors import SteelyardError
from steelyard.report import GOOD, Report, cells, columns, remarks, summary
from steelyard.watch import Job, Watch, watched_by

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_S = 5.0
_FAIR = {"skipped", "stray", "stale", "unverified", "update-available", "suspect", "would-repair", "would-remove", "unreachable", "unknown"}


class _Lines(logging.Handler):
    """Log lines on stderr as a person reads them; above a running progress bar they stay in place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{as_line(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # the other end of stderr is gone; the work goes on


def as_line(record: logging.LogRecord) -> str:
    mark = "" if record.levelno < logging.WARNING else "warning: " if record.levelno < logging.ERROR else "error: "
    return f"{mark}{record.getMessage()}"


def set_up_streams() -> None:
    """Something to write to, whatever this was started with: a name or a sentence that a terminal can't show never ends the work."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: else a file of ours would be taken for the terminal
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_up_logging() -> None:
    logger = logging.getLogger("steelyard")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def watching(stream: TextIO | None = None) -> Iterator[Watch]:
    """The watch of a command: bars where stderr is a terminal, else a line every five seconds."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _bars() as (progress, show), watched_by(Watch(show)) as watch, progress:
            yield watch
        return
    last: dict[int, float] = {}

    def show_line(job: Job, ended: bool) -> None:
        now = time.monotonic()
        # The first line comes within two seconds of the start, later ones every five; what ends sooner needs none.
        due = last.get(id(job), job.started - EVERY_S + 1.5) + EVERY_S
        if not ended and now >= due and job.total_bytes:
            last[id(job)] = now
            stream.write(f"{told(job)}\n")
            stream.flush()

    with watched_by(Watch(show_line, every_s=0.5)) as watch:
        yield watch


def told(job: Job) -> str:
    """A line about a job: percent, rate, remaining time, retries."""
    percent = 100 * job.done_bytes / job.total_bytes if job.total_bytes else 100.0
    left = job.remaining_s
    parts = [f"{job.label}: {percent:.0f} % of {gb(job.total_bytes)}", f"{gb(job.rate_bytes_per_s)}/s"]
    if left is not None and percent < 100:
        parts.append(f"{_span(left)} left")
    if job.retries:
        parts.append(f"{job.retries} retries")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _bars() -> Iterator[tuple[Progress, Callable[[Job, bool], None]]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[retries]}"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[int, TaskID] = {}

    def show(job: Job, ended: bool) -> None:
        task = tasks.get(id(job))
        if task is None:
            if ended:
                return
            task = tasks[id(job)] = progress.add_task(job.label, total=job.total_bytes, retries="")
        progress.update(task, completed=job.done_bytes, retries=f"{job.retries} retries" if job.retries else "")
        if ended:
            progress.remove_task(task)
            tasks.pop(id(job), None)

    yield progress, show


def show_json(report: Report) -> None:
    """The one document. Where stdout can't write a letter, or a file's name is no Unicode, in ASCII with escapes: JSON all the same."""
    document = report.as_json()
    try:
        # Ten thousand rows take json 0.2 s where it indents.
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
        text.encode(sys.stdout.encoding or "utf-8")
    except (TypeError, UnicodeEncodeError):
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_report(report: Report) -> None:
    """The table and the summary on stdout, the errors with their next steps on stderr."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from steelyard.gathered import gathered

    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    if report.rows:
        headings = columns(report)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for heading in headings:
            table.add_column(heading.replace("_", " "), overflow="fold")
        for row in gathered(report.rows):
            colour = "green" if row.outcome in GOOD else "yellow" if row.outcome in _FAIR else "red"
            values = cells(row, headings)
            table.add_row(
                *(Text(value, style=colour if heading == "result" else "") for heading, value in zip(headings, values, strict=True))
            )
        if not sys.stdout.isatty():
            # No one wraps a file or a pipe: a cell is never cut there.
            console = Console(width=max(100, console.measure(table, options=console.options.update(width=10_000)).maximum), highlight=False)
        console.print(table)
    for line in remarks(report):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(summary(report), style="bold"))
    if note := report.extra.get("note"):
        console.print(Text(str(note)), soft_wrap=True)
    for error in report.errors:
        show_error(error)


def show_error(error: SteelyardError) -> None:
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  next: {error.hint}\n")
    sys.stderr.flush()
