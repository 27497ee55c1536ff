"""A verb becomes a run: what was asked reaches it, Prefect or not; it waits and tries again where that helps, and says a screenful at most."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.prefect.conftest import ROOT


def test_names_of_models_reach_the_flow_one_by_one() -> None:
    from flows.engine import flow_of
    from steelyard.commands import app

    _, options = flow_of(app(["verify", "a", "b", "--copy", "usb", "--deep"], exit_on_error=False, print_error=False))
    assert options.model_dump(exclude={"config"}) == {"models": ("a", "b"), "copy_name": "usb", "depth": "deep", "cold": None}
    assert options.title == "a, b in usb"
    assert set(options.tags) == {"a", "b", "usb"}


@pytest.mark.parametrize(
    ("tokens", "module", "arguments"),
    [
        (["demo", "--hold", "--keep", "x", "--json"], "flows.demo", ["--keep", "x", "--hold", "--json"]),
        (
            ["up", "--host", "::1", "--port", "0", "--status-port", "0"],
            "deployments.up",
            ["--host", "::1", "--port", "0", "--status-port", "0"],
        ),
    ],
)
def test_what_a_start_is_asked_reaches_the_program_that_it_becomes(
    tokens: list[str], module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from steelyard.commands import app, start
    from steelyard.commands.base import Direct

    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(start, "become", lambda module, arguments: became.append((module, arguments)))
    asked = app(tokens, exit_on_error=False, print_error=False)
    assert isinstance(asked, Direct)
    asked.make()
    assert became == [(module, arguments)]


def test_prefect_is_told_before_it_is_loaded_that_nobody_is_counted_and_how_long_a_first_start_takes() -> None:
    code = (
        "import flows.verify\nfrom prefect._internal.analytics import is_telemetry_enabled\nfrom prefect.settings import get_current_settings as now\n"
        "print(is_telemetry_enabled(), now().server.analytics_enabled, now().server.ephemeral.startup_timeout_seconds)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT_TRACK"))}
    environment |= {"HOME": "/nonexistent", "PREFECT_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False", "120"], done.stderr


@pytest.mark.parametrize("how", ["raises", "crashes"])
def test_a_run_that_prefect_can_not_begin_is_done_without_it(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that answers and then is gone, or one of its own that does not start: a restore must work on that day too."""
    from prefect.states import Crashed

    from flows import engine
    from steelyard.report import Report
    from steelyard.verbs import Call

    def flow(*_: object, **__: object) -> object:
        if how == "raises":
            raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")
        return Crashed(message="no server")

    done = Report("restore")
    monkeypatch.setattr(engine, "load_config", lambda _: type("Config", (), {"chosen": lambda _, names: names})())
    monkeypatch.setattr(engine, "_find_api", lambda: None)
    monkeypatch.setattr(engine, "flow_of", lambda _: (flow, None))
    monkeypatch.setattr(engine, "run_locally", lambda _: done)
    assert engine.run_as_flow(Call("restore", None, {"model": "m"})) is done
    assert "running without it" in caplog.text


def test_a_run_that_is_taken_up_again_waits_for_its_first_try_and_another_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is gone, the process that it started is not: what was begun again finds the lock held, and later the work done."""
    from flows import engine
    from steelyard.errors import Busy, NoSpace
    from steelyard.report import Report

    waited: list[float] = []
    monkeypatch.setattr(engine.time, "sleep", waited.append)

    def locked_for(times: int, error: Exception) -> list[Report]:
        reports = [Report("download") for _ in range(times + 1)]
        for one in reports[:-1]:
            one.errors.append(error)  # type: ignore[arg-type]
        return reports

    busy = locked_for(3, Busy(what="store m", holder="another"))
    left = iter(busy)
    assert engine.once_free(lambda: next(left), again=True) is busy[-1]
    assert len(waited) == 3
    left = iter(busy)
    assert engine.once_free(lambda: next(left), again=False) is busy[0]
    full = locked_for(1, NoSpace(place="/", free="0", need="1", short="1"))
    assert engine.once_free(lambda: full[0], again=True) is full[0], "only a lock is waited for"
    monkeypatch.setattr(engine, "BESIDE_S", -1.0)
    left = iter(busy)
    assert engine.once_free(lambda: next(left), again=True) is busy[0], "and not for ever"
    assert len(waited) == 3


def test_weather_is_worth_a_retry_and_corruption_is_not() -> None:
    from prefect.states import Failed

    from steelyard.errors import AccessDenied, Corrupt, NoSpace, Unreachable
    from tasks.twins import worth_a_retry

    def ask(error: BaseException) -> bool:
        return worth_a_retry(None, None, Failed(data=error))  # type: ignore[arg-type]

    assert ask(Unreachable(who="the Hub", why="503"))
    assert not ask(Corrupt(path="x", why="its bytes differ"))
    assert not ask(AccessDenied(who="x", why="401"))
    assert not ask(NoSpace(place="/", free="0", need="1", short="1"))
    assert not ask(ValueError("a fault of ours"))


def test_a_large_file_is_a_task_however_many_there_were() -> None:
    from steelyard.manifest import FileEntry
    from tasks.runner import LARGE_BYTES, _size

    small, large = FileEntry("a", 10, "", "", 1, ()), FileEntry("b", LARGE_BYTES, "", "", 1, ())
    assert _size(["site", "store", [small, small], None]) == 20
    assert _size(["site", [small, large]]) > LARGE_BYTES
    assert _size(["site", "copy", large, True]) == LARGE_BYTES


def test_a_run_says_at_most_a_screenful_and_its_warnings() -> None:
    import logging

    from tasks.logs import ALL_LINES, PLAIN_LINES, Allowance

    def record(level: int) -> logging.LogRecord:
        return logging.LogRecord("steelyard", level, "", 0, "x", (), None)

    allowance = Allowance()
    assert sum(allowance.grants(record(logging.INFO)) for _ in range(1000)) == PLAIN_LINES
    assert sum(allowance.grants(record(logging.WARNING)) for _ in range(1000)) == ALL_LINES - PLAIN_LINES
    assert allowance.held_back == 2000 - ALL_LINES < 2000
    assert ALL_LINES < 200
