"""The commands. Parses, runs one verb, shows its report, and turns what happened into an exit code; nothing else is decided here."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from cyclopts import CycloptsError

from steelyard import orchestrator
from steelyard.again import may_have_one
from steelyard.commands import Direct, app
from steelyard.commands.base import become
from steelyard.disk import as_ours
from steelyard.errors import SteelyardError, Stopped, UsageError
from steelyard.report import Report
from steelyard.terminal import set_up_logging, set_up_streams, show_error, show_json, show_report, watching
from steelyard.verbs import VERBS, Call, Engine, run_locally
from steelyard.watch import Watch

if TYPE_CHECKING:
    from steelyard.receipt import Listening


def main(argv: Sequence[str] | None = None, engine: Engine = run_locally) -> None:
    """Run one command and exit. *engine* runs a verb: here by default; flows/ hands in one that makes it a flow run."""
    # Imports make objects that stay; looking through them again and again takes some 50 ms of a short command.
    gc.set_threshold(50_000, 20, 20)
    set_up_streams()
    tokens = _command_first(sys.argv[1:] if argv is None else argv)
    listening: Listening | None = None
    if argv is None and engine is run_locally and may_have_one(sys.argv[1:]):
        from steelyard.receipt import Listening

        listening = Listening(sys.argv[1:])
    wants_json = any(_asks_for_json(token) for token in tokens)
    set_up_logging()
    try:
        if tokens and tokens[0].startswith(_COMMON):
            raise UsageError(why="No command is named.", hint="see: steelyard --help")
        asked = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _end(
            _failed(_command(tokens), UsageError(why=_one_line(error), hint=f"see: {f'steelyard {_command(tokens)}'.rstrip()} --help")),
            wants_json,
        )
    except SteelyardError as error:
        _end(_failed(_command(tokens), error), wants_json)
    if not isinstance(asked, Call | Direct):
        sys.exit(0)  # --help and --version have printed what was asked for
    show: Callable[[Report], None] = show_report
    name = asked.verb if isinstance(asked, Call) else asked.command
    if isinstance(asked, Call) and engine is run_locally and "--here" not in tokens and orchestrator.api_url():
        os.environ["PREFECT_API_URL"] = str(orchestrator.api_url())
        become("flows", tokens)
    try:
        with watching() as watch, _stoppable(watch):
            if isinstance(asked, Call):
                report = engine(asked)
            else:
                report, show = asked.make(), asked.show
    except KeyboardInterrupt:
        report = _failed(name, Stopped())
    except SteelyardError as error:
        report = _failed(name, error)
    except BrokenPipeError:
        os._exit(141)
    except OSError as error:
        report = _failed(name, as_ours(error, error.filename or "a file or folder of ours"))
    except Exception as error:
        if os.environ.get("STEELYARD_DEBUG"):
            raise
        report = _failed(name, _Unexpected(why=f"{type(error).__name__}: {error}".splitlines()[0]))
    _end(report, wants_json, show, listening)


class _Unexpected(SteelyardError):
    """This should not have happened: {why}"""

    code = "unexpected"
    hint = "nothing was published half-way; set STEELYARD_DEBUG=1, run it again and report the traceback"


class _Unshown(SteelyardError):
    """What the command came to (exit code {ended}) can't be written to stdout: {why}"""

    code = "output"
    hint = "run it again with its output to a place that takes it; what was done is done"


class _Tee:
    """A stream that also keeps what is written to it."""

    def __init__(self, stream: TextIO, kept: list[str]) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.append(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _stoppable:
    """SIGINT and SIGTERM set the watch's stop and interrupt the main thread; a second SIGINT is Python's own."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def stop(number: int, _frame: FrameType | None) -> None:
            self._watch.stop.set()
            signal.signal(number, self._before[number])
            raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _failed(command: str, error: SteelyardError) -> Report:
    report = Report(command)
    report.errors.append(error)
    return report.close()


_COMMON = ("--json", "--here", "--config")


def _command_first(tokens: Sequence[str]) -> list[str]:
    """*tokens* with the options that every command takes behind the command, wherever they stood: `steelyard --json verify`."""
    at = 0
    while at < len(tokens) and tokens[at].partition("=")[0] in _COMMON:
        at += 2 if tokens[at] == "--config" else 1
    return [*tokens[at : at + 1], *tokens[:at], *tokens[at + 1 :]]


def _asks_for_json(token: str) -> bool:
    name, given, value = token.partition("=")
    return name == "--json" and (not given or value.lower() not in {"false", "f", "no", "n", "0"})


def _command(tokens: Sequence[str]) -> str:
    known = {*VERBS, "init", "inspect", "status", "doctor", "up", "demo", "clean", "target", "adopt", "views", "move"}
    return next((token for token in tokens[:1] if token in known), "")


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _end(report: Report, wants_json: bool, show: Callable[[Report], None] = show_report, listening: Listening | None = None) -> None:
    code = report.exit_code
    told: list[str] = []
    try:
        if listening is not None and report.receipt is not None:
            sys.stdout = cast(TextIO, _Tee(sys.stdout, told))
        if wants_json:
            show_json(report)
        elif report.rows or report.ok:
            show(report)
        else:
            for error in report.errors:
                show_error(error)
        sys.stdout.flush()
        if listening is not None:
            listening.keep(report, "".join(told), as_json=wants_json)
    except (BrokenPipeError, SystemExit):
        # Whoever read has seen enough; rich turns that into an exit of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        show_error(_Unshown(why=error.strerror or str(error), ended=code))
        code = code or 1
    # The interpreter ends by looking through every object for cycles, twice; with nothing left to find that takes a quarter of a short command.
    gc.freeze()
    sys.exit(code)
