"""Rows as a person reads them: what went well for many files alike is one line. Programs get every row, in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steelyard.report import GOOD, Row, remark

MOST = 50
"""Files of one model in one copy with the same good outcome that are still told one by one."""


def gathered(rows: Sequence[Row]) -> list[Row]:
    """*rows*, where more than MOST files came out well in the same way with one line for all of them: how many, their bytes summed."""
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows if len(rows) > MOST else ():
        if row.file and row.outcome in GOOD and not row.exit_code and not remark(row):
            alike.setdefault((row.model, row.copy, row.outcome), []).append(row)
    many = {key: of for key, of in alike.items() if len(of) > MOST}
    if not many:
        return list(rows)
    left: list[Row] = []
    told: set[tuple[str, str, str]] = set()
    taken = {id(row) for of in many.values() for row in of}
    for row in rows:
        if id(row) not in taken:
            left.append(row)
            continue
        key = (row.model, row.copy, row.outcome)
        if key not in told:
            told.add(key)
            left.append(_one_of(many[key]))
    return left


def _one_of(rows: Sequence[Row]) -> Row:
    """A line for *rows*: sums of bytes, and of the other facts those that all of them share."""
    facts = {}
    for key, value in rows[0].facts.items():
        values = [row.facts.get(key) for row in rows]
        if "bytes" in key and all(isinstance(one, int) for one in values):
            facts[key] = sum(one for one in values if isinstance(one, int))
        elif all(one == value for one in values):
            facts[key] = value
    return replace(rows[0], file=f"{len(rows):,} files", path="", facts=facts)
