"""What was proven when, and by what: one SQLite file in the store. Losing it loses ages and trends, never a file's truth."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from steelyard.copies.base import Finding
from steelyard.errors import MountAbsent, Range
from steelyard.fstab import refuse_bare

_SCHEMA = """
create table if not exists proofs (
    at text not null, copy text not null, model text not null, commit_id text not null, file text not null,
    verdict text not null, proof text not null, why text not null, bad_ranges text not null, stat text not null, bytes_read integer not null
);
create index if not exists proofs_latest on proofs (copy, model, commit_id, file, at);
create table if not exists states (copy text, model text, commit_id text, state text not null, at text not null, primary key (copy, model, commit_id));
create table if not exists told (event text not null, subject text not null, key text not null, at text not null, primary key (event, subject, key));
create table if not exists events (at text not null, verb text not null, model text not null, copy text not null, outcome text not null, facts text not null);
create index if not exists events_latest on events (verb, model, at);
"""


@dataclass(frozen=True)
class Proof:
    """A look that was recorded. *at* is ISO 8601 in UTC."""

    at: str
    copy: str
    model: str
    commit: str
    file: str
    finding: Finding


@dataclass(frozen=True)
class Event:
    """What a verb did, as it was recorded. *at* is ISO 8601 in UTC."""

    at: str
    model: str
    copy: str
    outcome: str
    facts: Mapping[str, object]


class History:
    """Appends looks and events, and answers what the latest were. A store that can't be written keeps no history; no verb fails for that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: tuple[int, sqlite3.Connection] | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Answer all questions of this thread in the block from one connection: a status asks thousands."""
        if self._held is not None:
            yield
            return
        with self._open(write=False) as connection:
            self._held = (threading.get_ident(), connection) if connection is not None else None
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection | None]:
        if not write and self._held is not None and self._held[0] == threading.get_ident():
            yield self._held[1]
            return
        connection: sqlite3.Connection | None = None
        try:
            if write:
                if not self.path.parent.is_dir():
                    refuse_bare(self.path)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=10)
                connection.executescript(_SCHEMA)
            elif self.path.exists():
                connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, timeout=10)
        except (sqlite3.Error, OSError, MountAbsent):
            connection = None
        try:
            yield connection
        finally:
            if connection is not None:
                connection.close()

    def record(self, copy: str, model: str, commit: str, file: str, finding: Finding, *, at: str = "") -> None:
        """*at* is when the look was, where that is not now: a proof that is carried over to another name keeps its age."""
        self.record_all(copy, model, commit, {file: finding}, at=at)

    def record_all(self, copy: str, model: str, commit: str, findings: Mapping[str, Finding], *, at: str = "") -> None:
        """One transaction for many files: 10,000 of them cost one fsync."""
        at = at or _now()
        rows = [
            (at, copy, model, commit, file, one.verdict, one.proof, one.why, json.dumps(one.bad_ranges), one.stat, one.bytes_read)
            for file, one in findings.items()
        ]
        if not rows:
            return
        try:
            with self._open(write=True) as db:
                if db is not None:
                    with db:
                        db.executemany("insert into proofs values (?,?,?,?,?,?,?,?,?,?,?)", rows)
                        if any(not one.ok for one in findings.values()):
                            db.execute("delete from states where copy=? and model=? and commit_id=?", (copy, model, commit))
        except sqlite3.Error:
            return

    def keep_state(self, copy: str, model: str, commit: str, state: str) -> None:
        """Remember in one word what a snapshot looked like (sizes, times, inodes) when every file of it had been proven whole."""
        try:
            with self._open(write=True) as db:
                if db is not None:
                    with db:
                        db.execute("insert or replace into states values (?,?,?,?,?)", (copy, model, commit, state, _now()))
        except sqlite3.Error:
            return

    def state(self, copy: str, model: str, commit: str) -> str:
        """What keep_state last said, unless a file of the snapshot was found bad since."""
        try:
            with self._open(write=False) as db:
                found = (
                    db.execute("select state from states where copy=? and model=? and commit_id=?", (copy, model, commit)) if db else None
                )
                row = found.fetchone() if found else None
        except sqlite3.Error:
            return ""
        return str(row[0]) if row else ""

    def event(self, verb: str, model: str, copy: str, outcome: str, /, **facts: object) -> None:
        try:
            with self._open(write=True) as db:
                if db is not None:
                    with db:
                        db.execute("insert into events values (?,?,?,?,?,?)", (_now(), verb, model, copy, outcome, json.dumps(facts)))
        except sqlite3.Error:
            return

    def tell_once(self, event: str, subject: str, key: str) -> bool:
        """Whether this was never told before; from now on it was. Of two runs that ask at once one is told yes. Where no record can be kept: yes."""
        try:
            with self._open(write=True) as db:
                if db is None:
                    return True
                with db:
                    return db.execute("insert or ignore into told values (?,?,?,?)", (event, subject, key, _now())).rowcount > 0
        except sqlite3.Error:
            return True

    def forget_told(self, event: str, subject: str, key: str) -> None:
        """It could not be told after all: it is told the next time."""
        self._forget("event=? and subject=? and key=?", [(event, subject, key)])

    def forget_ended(self, ended: Sequence[tuple[str, str]]) -> None:
        """These events of these subjects have ended: they are told when they come again. One look where nothing was told, as a rule."""
        self._forget("event=? and subject=?", ended)

    def _forget(self, where: str, values: Sequence[tuple[str, ...]]) -> None:
        try:
            with self._open(write=False) as db:
                there = [one for one in values if db is not None and db.execute(f"select 1 from told where {where}", one).fetchone()]  # noqa: S608
            if there:
                with self._open(write=True) as db:
                    if db is not None:
                        with db:
                            db.executemany(f"delete from told where {where}", there)  # noqa: S608 (no value is in the text)
        except sqlite3.Error:
            return

    def latest(self, copy: str, model: str, commit: str, file: str, *, ok_only: bool = False) -> Proof | None:
        """The latest look at a file that read its bytes (or a store's own checksum); *ok_only*: the latest that found it whole."""
        where = "copy=? and model=? and commit_id=? and file=?" + (" and verdict='ok'" if ok_only else "")
        return next(iter(self._proofs(f"{where} order by at desc, rowid desc limit 1", (copy, model, commit, file))), None)

    def latest_of(self, copy: str, model: str, commit: str) -> dict[str, Proof]:
        """The latest look at every file of a snapshot, by path."""
        newest = "rowid in (select max(rowid) from proofs where copy=? and model=? and commit_id=? group by file)"
        return {proof.file: proof for proof in self._proofs(newest, (copy, model, commit))}

    def events(self, verb: str, model: str, limit: int = 20) -> list[tuple[str, str, str, dict[str, object]]]:
        """(at, copy, outcome, facts), latest first."""
        try:
            with self._open(write=False) as db:
                if db is None:
                    return []
                rows = db.execute(
                    "select at, copy, outcome, facts from events where verb=? and model=? order by at desc, rowid desc limit ?",
                    (verb, model, limit),
                )
                return [(at, copy, outcome, json.loads(facts)) for at, copy, outcome, facts in rows]
        except (sqlite3.Error, ValueError):
            return []

    def recent(self, verb: str, *, since: str = "", limit: int = 5000) -> list[Event]:
        """Events of *verb* for every model, latest first, not older than *since* (ISO 8601 in UTC)."""
        try:
            with self._open(write=False) as db:
                if db is None:
                    return []
                rows = db.execute(
                    "select at, model, copy, outcome, facts from events where verb=? and at>=? order by at desc, rowid desc limit ?",
                    (verb, since, limit),
                ).fetchall()
            return [Event(at, model, copy, outcome, json.loads(facts)) for at, model, copy, outcome, facts in rows]
        except (sqlite3.Error, ValueError):
            return []

    def whole_since(self, copy: str, model: str, commit: str) -> dict[str, tuple[str, str]]:
        """When each file of a snapshot was last found whole, and by what, by path."""
        # SQLite takes the bare column from the row that has the maximum.
        question = "select file, max(at), proof from proofs where copy=? and model=? and commit_id=? and verdict='ok' group by file"
        try:
            with self._open(write=False) as db:
                rows = db.execute(question, (copy, model, commit)).fetchall() if db is not None else []
            return {file: (at, proof) for file, at, proof in rows}
        except sqlite3.Error:
            return {}

    def looks(self, model: str, *, since: str = "", limit: int = 20_000) -> list[tuple[str, str, str, int]]:
        """(at, copy, verdict, bytes read) of every look at *model*, latest first."""
        question = "select at, copy, verdict, bytes_read from proofs where model=? and at>=? order by rowid desc limit ?"
        try:
            with self._open(write=False) as db:
                return db.execute(question, (model, since, limit)).fetchall() if db is not None else []
        except sqlite3.Error:
            return []

    def _proofs(self, where: str, values: tuple[str, ...]) -> list[Proof]:
        columns = "at, copy, model, commit_id, file, verdict, bad_ranges, proof, why, bytes_read, stat"
        try:
            with self._open(write=False) as db:
                if db is None:
                    return []
                rows = db.execute(f"select {columns} from proofs where {where}", values).fetchall()  # noqa: S608 (no value is in the text)
        except sqlite3.Error:
            return []
        found = []
        for at, copy, model, commit, file, verdict, ranges, proof, why, bytes_read, stat in rows:
            bad: tuple[Range, ...] = tuple((lo, hi) for lo, hi in json.loads(ranges)) if ranges != "[]" else ()
            found.append(Proof(at, copy, model, commit, file, Finding(verdict, bad, proof, why, bytes_read, stat)))
        return found


def _now() -> str:
    """To the microsecond: what was looked at first must sort first."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
