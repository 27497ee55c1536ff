"""One writer at a time, on one machine and across machines that share a drive."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard import runlock
from steelyard.errors import Busy
from steelyard.runlock import locked
from steelyard.watch import Watch, watched_by


@contextmanager
def running(work: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """*work* in a process of its own; it calls what it is given once it holds the lock, and then waits to be killed."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: os.write(theirs, b"x") and None)
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        os.set_blocking(ours, True)
        assert os.read(ours, 1) == b"x"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
        os.close(theirs)


def hold(folder: Path, machine: str = "") -> Callable[[Callable[[], None]], None]:
    """Hold the lock, on another *machine* if one is named: flock does not reach from there to here."""

    def work(tell: Callable[[], None]) -> None:
        if machine:
            runlock.this_machine = lambda: machine
            runlock.socket.gethostname = lambda: machine  # type: ignore[attr-defined]
            runlock.fcntl.flock = lambda *_: None  # type: ignore[attr-defined, assignment]
        with locked(folder, "usb m", "backup"):
            tell()
            time.sleep(60)

    return work


def test_a_second_run_is_told_who_holds_it_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with running(hold(tmp_path)) as pid:
        with (
            pytest.raises(Busy, match=rf"usb m is locked by steelyard backup \(process {pid} on .*, since 20"),
            locked(tmp_path, "usb m", "repair"),
        ):
            pass
        with locked(tmp_path, "usb other", "repair"):
            pass
        os.kill(pid, signal.SIGKILL)
        with locked(tmp_path, "usb m", "repair", wait_s=5):
            assert json.loads((tmp_path / "usb-m.lock").read_text())["verb"] == "repair"
    assert (tmp_path / "usb-m.lock").read_text() == "", "whoever ends well leaves no record"


def test_another_machine_that_gives_signs_of_life_is_refused_to_by_name(tmp_path: Path) -> None:
    with running(hold(tmp_path, "attic")) as pid:
        with pytest.raises(Busy) as caught, locked(tmp_path, "usb m", "backup"):
            pass
        assert f"process {pid} on attic" in caught.value.message and "after 180 s of silence" in caught.value.hint
        assert caught.value.exit_code == 3
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Busy), locked(tmp_path, "usb m", "backup"):
            pass  # from here a killed run and a busy one look the same for a while
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usb-m.lock"]


def test_another_machine_that_fell_silent_is_taken_over_from_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(hold(tmp_path, "attic")) as pid:
        os.kill(pid, signal.SIGKILL)
    path = tmp_path / "usb-m.lock"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "beat": time.time() - 200}))
    with pytest.raises(Busy), locked(tmp_path, "usb m", "backup"):
        pass  # the two clocks do not agree: the younger one is believed
    os.utime(path, (time.time() - 200, time.time() - 200))
    monkeypatch.setattr(runlock, "SETTLE_S", 0.0)
    with locked(tmp_path, "usb m", "backup"):
        assert "taken over from steelyard backup" in caplog.text and "on attic" in caplog.text


def test_a_holder_gives_signs_of_life_and_stops_when_its_lock_was_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlock, "BEAT_S", 0.02)
    path = tmp_path / "usb-m.lock"
    with watched_by(Watch()) as watch, locked(tmp_path, "usb m", "backup"):
        first = json.loads(path.read_text())["beat"]
        ends = time.monotonic() + 10
        while json.loads(path.read_text() or "{}").get("beat", first) == first and time.monotonic() < ends:
            time.sleep(0.01)
        assert time.monotonic() < ends and not watch.stop.is_set()
        theirs = json.dumps({"verb": "repair", "host": "attic", "machine": "attic", "pid": 1, "since": "now", "token": "other"})
        path.write_text(theirs)
        assert watch.stop.wait(10), "this run no longer holds what it writes to"
    assert path.read_text() == theirs, "the other machine's record is left alone"


def test_two_machines_that_take_over_at_once_do_not_both_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usb-m.lock"
    old = {"verb": "backup", "host": "attic", "machine": "attic", "pid": 1, "since": "then", "token": "a", "beat": 1.0}
    path.write_text(json.dumps(old))
    os.utime(path, (1, 1))
    monkeypatch.setattr(Watch, "pause", lambda *_: path.write_text(json.dumps({**old, "host": "cellar", "token": "c"})))
    with pytest.raises(Busy, match="on cellar"), locked(tmp_path, "usb m", "backup"):
        pass


def test_a_torn_record_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "usb-m.lock").write_text('{"verb": "ba')
    with locked(tmp_path, "usb m", "backup"):
        pass


def test_a_record_of_an_earlier_version_is_known_by_its_host(tmp_path: Path) -> None:
    path = tmp_path / "usb-m.lock"
    path.write_text(json.dumps({"verb": "backup", "host": runlock.socket.gethostname(), "pid": 1, "since": "then"}))  # type: ignore[attr-defined]
    with locked(tmp_path, "usb m", "backup"):
        pass
    path.write_text(json.dumps({"verb": "backup", "host": "attic", "pid": 1, "since": "then"}))
    with pytest.raises(Busy, match="on attic"), locked(tmp_path, "usb m", "backup"):
        pass
