"""Rows in; terminal table, Markdown and JSON out: the same facts everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.disk import as_ours, gb
from steelyard.errors import SteelyardError, worst


@dataclass(slots=True)
class Row:
    """One outcome. *exit_code* is what it adds to the command's; *facts* are the JSON keys that CONTRACT.md names for the verb.

    Nobody changes one. It is not frozen all the same: a round over 10,000 files makes as many, and that would take three times as long.
    """

    model: str = ""
    file: str = ""
    copy: str = ""
    path: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def as_json(self) -> dict[str, Any]:
        place = {"model": self.model, "file": self.file, "copy": self.copy, "path": self.path}
        return {**{key: value for key, value in place.items() if value}, **{key: _plain(value) for key, value in self.facts.items()}}

    @property
    def outcome(self) -> str:
        return str(self.facts.get("verdict") or self.facts.get("action") or "")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


@dataclass
class Report:
    """What a command did. Verbs add rows and errors as they go; an error never stops the other files."""

    command: str
    rows: list[Row] = field(default_factory=list)
    errors: list[SteelyardError] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys of the JSON document."""
    head: dict[str, Any] = field(default_factory=dict)
    """A first result that is about the whole and not about a file; only programs see it."""
    quiet: list[tuple[str, Any]] = field(default_factory=list, repr=False)
    """Of a backup: (replica, manifest) of each snapshot where the states of files alone said that nothing is to be done."""
    receipt: dict[str, Any] | None = field(default=None, repr=False)
    """What decided this report, where the same question may be answered without the work: see steelyard.again."""
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def exit_code(self) -> int:
        return worst([*(row.exit_code for row in self.rows), *(error.exit_code for error in self.errors)])

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def close(self) -> Report:
        self.seconds = round(time.monotonic() - self._started, 3)
        return self

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep an error of the block as one of the report's and go on; a stop request is not kept but ends everything.

        The file system may refuse any call at any time, also where no step expects it: that is a sentence too, and concerns this block alone.
        """
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.errors.append(as_ours(error, error.filename or "a file or folder of ours"))
        except SteelyardError as error:
            if error.exit_code == 130:
                raise
            self.errors.append(error)

    def as_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "seconds": self.seconds,
            "results": [*([_plain(self.head)] if self.head else []), *(row.as_json() for row in self.rows)],
            "errors": [error.as_json() for error in self.errors],
            **{key: _plain(value) for key, value in self.extra.items()},
        }


# --- cells: what a person reads in a row, whichever table it stands in

GOOD = frozenset({"ok", "downloaded", "resumed", "unchanged", "adopted", "copied", "repaired", "nothing-to-do", "removed", "written"})
"""Outcomes of a row that nobody needs to act on."""
_NEVER_SHOWN = {"verdict", "action", "why", "bad_ranges", "reasons", "skipped", "note"}
_COLUMNS = {
    "download": ("size_bytes", "bytes_fetched", "sources", "trust"),
    "adopt": ("action", "size_bytes"),
    "backup": ("bytes_written",),
    "restore": ("bytes_written",),
    "repair": ("bytes_moved", "sources"),
    "load": ("device", "tensors", "parameters", "seconds", "whole"),
    "inspect": ("format", "tensors", "weights_key", "whole"),
    "check-updates": ("held_commit", "upstream_commit"),
    "verify": ("proof",),
    "drill": ("minutes", "bytes_written", "loaded"),
    "clean": ("bytes", "reason"),
    "views": ("bytes_freed", "bytes_written"),
    "move": ("bytes_written", "sources"),
    "disk-watch": ("free_bytes", "total_bytes", "inodes_free_percent", "full_on", "io_errors", "smart"),
    "target": ("id",),
    "keep": ("verb",),
    "doctor": ("check", "fix"),
}


def columns(report: Report) -> list[str]:
    """Headings of the table of *report*: where, outcome, the verb's facts, and a remark."""
    wanted = _COLUMNS.get(report.command, ())
    there = [key for key in wanted if any(row.facts.get(key) not in (None, "", ()) for row in report.rows)]
    place = [key for key in ("model", "file", "copy") if any(getattr(row, key) for row in report.rows)]
    if report.command in {"disk-watch", "init", "inspect"}:
        place = ["path"]
    return [*place, "result", *there, *(["remark"] if any(remark(row) for row in report.rows) else [])]


def cells(row: Row, headings: Sequence[str]) -> list[str]:
    out = []
    for heading in headings:
        if heading in {"model", "file", "copy", "path"}:
            out.append(str(getattr(row, heading)))
        elif heading == "result":
            out.append(row.outcome)
        elif heading == "remark":
            out.append(remark(row))
        else:
            out.append(cell(heading, row.facts.get(heading)))
    return out


def cell(key: str, value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.startswith(("bytes", "size")) or key.endswith("bytes"):
        return gb(value)
    if key.endswith("commit"):
        return str(value)[:8]
    if key == "seconds":
        return f"{value:.1f} s"
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return str(value)


def remark(row: Row) -> str:
    """What is to be said of a row beyond its outcome and figures."""
    parts = [str(row.facts.get("why") or row.facts.get("warning") or "")]
    ranges = row.facts.get("bad_ranges") or ()
    if ranges:
        shown = ", ".join(f"{start:,}–{end:,}" for start, end in list(ranges)[:3])
        parts.append(f"bytes {shown}{f' and {len(ranges) - 3} more' if len(ranges) > 3 else ''}")
    reasons = row.facts.get("reasons") or ()
    parts.extend(str(one.get("message", one) if isinstance(one, Mapping) else one) for one in list(reasons)[:2])
    return "; ".join(part for part in parts if part)


def remarks(report: Report) -> list[str]:
    """What is told below the table, a line each: how two files differ, the aspects of a weights file one by one, how to allow what it needs."""
    lines = [line for row in report.rows if report.command == "inspect" and "added" in row.facts for line in _difference(row.facts)]
    judged = [row for row in report.rows if "aspects" in row.facts]
    if not judged:
        return lines
    from steelyard.checkpoint.verdict import told

    for row in judged:
        name = row.file or row.path
        lines.append(f"{name}: {told(row.facts)}")
        if hint := row.facts.get("hint"):
            lines.append(f"{name}: {hint}")
    return lines


def _difference(facts: Mapping[str, Any]) -> list[str]:
    kinds = {kind: facts[kind] or [] for kind in ("added", "removed", "reshaped", "retyped", "changed")}
    lines = []
    for kind, names in kinds.items():
        told = [f"{name} ({facts['details'][name]})" if name in facts["details"] else name for name in names[:10]]
        if names:
            lines.append(f"{kind}, {len(names)}: {', '.join(told)}{' …' if len(names) > 10 else ''}")
    if facts["unknown"]:
        lines.append(f"unknown, {facts['unknown']}: no checksum tells whether they changed, and their bytes were not read")
    return lines if any(kinds.values()) or facts["unknown"] else ["no tensor differs"]


def summary(report: Report) -> str:
    """One sentence: what the command came to."""
    if not report.rows and not report.errors:
        return f"{report.command}: nothing to do"
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if outcome)
    failed = f"{len(report.errors)} error{'s' if len(report.errors) != 1 else ''}" if report.errors else ""
    return f"{report.command}: {', '.join(part for part in (told, failed) if part)} in {report.seconds:.1f} s"


def markdown(report: Report) -> str:
    """The report as a Markdown document, for the Prefect UI and for notes."""
    lines = [f"**{summary(report)}** — {'all well' if report.ok else f'exit code {report.exit_code}'}", ""]
    if report.rows:
        from steelyard.gathered import gathered

        headings = columns(report)
        lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(_escape(one) for one in cells(row, headings)) + " |" for row in gathered(report.rows)]
        lines.append("")
    if told := remarks(report):
        lines += [*(f"- {_escape(one)}" for one in told), ""]
    lines += [
        f"- **{error.code}**: {_escape(error.message)}" + (f" → {_escape(error.hint)}" if error.hint else "") for error in report.errors
    ]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
