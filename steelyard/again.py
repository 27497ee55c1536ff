"""The same question again: a backup that last found nothing to do, asked for in the same words where nothing has changed, gives the same answer.

Python, the config's schema and 10,000 manifest entries take ten times as long to load as the file system to say that all is as it was. So a command
that found nothing to do leaves a receipt: what it looked at, and what it said. This module reads receipts and loads nothing else of the house. What
decides is what decides in steelyard.settled: the word that the history keeps for a snapshot whose every file was proven. Whenever anything is
not just as it was, the command runs as if there were no receipt.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping, Sequence

from steelyard import TYPE_CHECKING, __version__
from steelyard.states import State, state_of, states_of, word_of

if TYPE_CHECKING:
    from typing import Any

FORMAT = 2
GOOD_FOR_S = 86400.0
HEARD = ("STEELYARD_", "PREFECT_", "HF_", "XDG_", "HOME", "LANG", "LC_", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHON")
"""Beginnings of the variables that a command's answer may depend on."""
MOUNTS = "/proc/self/mountinfo"


def key_of(argv: Sequence[str]) -> str:
    """Stands for the words of a command, where they were said, and by whom."""
    from _blake2 import blake2b

    heard = sorted((name, value) for name, value in os.environ.items() if name.startswith(HEARD))
    asked = repr((FORMAT, __version__, sys.version, list(argv), os.getcwd(), os.geteuid(), heard))
    return str(blake2b(asked.encode(errors="surrogatepass"), digest_size=20).hexdigest())


def receipt_path(argv: Sequence[str]) -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "steelyard", "again", f"{key_of(argv)}.json")


def answer_path(receipt: str) -> str:
    return f"{receipt.removesuffix('.json')}.answer"


def may_have_one(argv: Sequence[str]) -> bool:
    """Whether a command is of the kind that leaves receipts: answers to a program or into a file, not to a person at a terminal."""
    if argv[:1] != ["backup"] or os.environ.get("PREFECT_API_URL") or sys.stdout is None or sys.stderr is None:
        return False
    return not sys.stdout.isatty()


def answered(argv: Sequence[str]) -> bool:
    """Give the answer of the receipt, if there is one and it holds; False where the command has to run."""
    began = time.monotonic()
    try:
        if not may_have_one(argv):
            return False
        import json  # orjson takes longer to load than all of this to do

        path = receipt_path(argv)
        with open(path, "rb") as file:
            receipt = json.loads(file.read())
        if not 0 <= time.time() - receipt["made"] < GOOD_FOR_S or look_at(receipt["world"]) != receipt["world"]:
            return False
        if mounts() != receipt["mounts"]:
            return False
        held = _hold(receipt["locks"])
        try:
            for folder in receipt["probes"]:
                _probe(folder)
            # Opened before anything is noted: what the receipt says must be there to be said.
            answer = os.open(answer_path(path), os.O_RDONLY | os.O_CLOEXEC)
            held.append(answer)
            if os.fstat(answer).st_size != receipt["answer_bytes"] or not _agreed_and_noted(receipt, _words(receipt["copies"]), began):
                return False
            said = b"".join(iter(lambda: os.read(answer, 1 << 24), b""))
        finally:
            for fd in held:
                os.close(fd)
        return _told(receipt, said, round(time.monotonic() - began, 3))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _told(receipt: Mapping[str, Any], answer: bytes, seconds: float) -> bool:
    """Say what the receipt says, with the seconds that it took this time."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    cut = receipt["seconds_at"]
    now = f"{seconds}" if receipt["json"] else f"{seconds:.1f}"
    try:
        sys.stderr.write("".join(f"{line}\n" for line in receipt["said"]))
        out = sys.stdout.buffer
        out.writelines((answer[:cut], now.encode(), answer[cut:]))
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has seen enough
    return True


def look_at(paths: Mapping[str, object] | Sequence[str]) -> dict[str, list[int] | None]:
    """The state of each path, links followed; None where nothing is there."""
    found: dict[str, list[int] | None] = {}
    for path in paths:
        try:
            seen = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            found[path] = None
        else:
            found[path] = [*state_of(seen), seen.st_dev]
    return found


def mounts() -> str:
    """What is mounted where and how, in one word."""
    with open(MOUNTS, "rb") as file:
        return word_of(file.read())


def _hold(locks: Sequence[str]) -> list[int]:
    """The locks that a backup takes, taken for the moment (see runlock.py); empty when another run has one. :raises OSError:"""
    import fcntl

    held: list[int] = []
    try:
        for path in locks:
            held.append(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held[-1]).st_size:
                raise BlockingIOError(path)  # a run on another machine says so in the file
    except OSError:
        for fd in held:
            os.close(fd)  # left open, it would keep the command itself out
        raise
    return held


def _probe(folder: str) -> None:
    """As disk.probe_write: a drive that was pulled out answers for its files from memory, and takes no write."""
    probe = os.path.join(folder, f".steelyard-probe-{os.urandom(6).hex()}")
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(probe)
        os.write(fd, b"probe")
        os.fsync(fd)
    finally:
        os.close(fd)


def _states(copy: Mapping[str, Any]) -> dict[str, State]:
    """What Copy.stats gives for the snapshot that *copy* tells of. Its names are one text: ten thousand are read in no time."""
    files = zip(copy["paths"].split("\0"), map(int, copy["sizes"].split()), strict=True)
    try:
        found = states_of(files, copy["folders"].__getitem__)
        for name, path in copy["records"] if found else ():
            found[name] = state_of(os.lstat(path))
    except OSError:
        return {}
    return found


def _words(copies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the snapshots look like now, half of them looked at by a second process: one core does not ask as fast as two are answered."""
    half = len(copies) // 2
    reading, writing = os.pipe()
    child = os.fork() if half else -1
    if child == 0:
        try:
            os.write(writing, "\n".join(word_of(_states(copy)) for copy in copies[:half]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    mine = [word_of(_states(copy)) for copy in copies[half:]]
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read().decode().split("\n") if half else []
    if child > 0:
        os.waitpid(child, 0)
    return [*theirs, *mine] if len(theirs) == half else []


def _agreed_and_noted(receipt: Mapping[str, Any], words: Sequence[str], began: float) -> bool:
    """Whether every word is the one that the history keeps; the run is then noted there, as steelyard.backup and steelyard.runs note theirs."""
    import json
    import sqlite3
    from datetime import UTC, datetime

    copies = receipt["copies"]
    if len(words) != len(copies) or not all(words):
        return False
    try:
        db = sqlite3.connect(f"file:{receipt['history']}?mode=rw", uri=True, timeout=0.5)
        try:
            for copy, word in zip(copies, words, strict=True):
                kept = db.execute("select state from states where copy=? and model=? and commit_id=?", copy["of"]).fetchone()
                if kept is None or kept[0] != word:
                    return False
            now = datetime.now(UTC)
            at, seconds = now.isoformat(timespec="microseconds"), round(time.monotonic() - began, 3)
            rows = [
                (at, "backup", model, name, "ok", json.dumps({**facts, "seconds": seconds})) for model, name, facts in receipt["backups"]
            ]
            for point, place in receipt["disks"]:
                last = db.execute("select max(at) from events where verb='disk' and model=?", (point,)).fetchone()[0]
                if last is None or (now - datetime.fromisoformat(last)).total_seconds() > receipt["apart_s"]:
                    room = os.statvfs(place)
                    free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
                    told = {"free": free, "total": total, "inodes_free": room.f_favail, "io_errors": None}
                    rows.append((at, "disk", point, "", "ok", json.dumps(told)))
            ran = {"verb": "backup", "exit_code": 0, "seconds": seconds}
            rows.append((at, "run", "", "", "ok", json.dumps(ran)))
            with db:
                db.executemany("insert into events values (?,?,?,?,?,?)", rows)
        finally:
            db.close()
    except sqlite3.Error:
        return False
    return True
