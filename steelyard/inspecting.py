"""inspect: a weights file by path, hf://repo_id[@revision]/path or s3://bucket/key, told from its headers; two of them: their difference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from steelyard.checkpoint import Inspection, inspect
from steelyard.config import HubConfig
from steelyard.copies.hub import HubFile
from steelyard.errors import BadAnswer, UsageError
from steelyard.hub import Hub
from steelyard.line import Line
from steelyard.lock import LockedFile
from steelyard.report import Report, Row
from steelyard.source import ByteSource, LocalFile

_HF = re.compile(r"^hf://(?P<repo>[^@/]+/[^@/]+?)(?:@(?P<revision>[^/]+))?/(?P<path>.+)$")


def open_source(text: str, settings: HubConfig, stack: ExitStack) -> ByteSource:
    """The bytes that *text* names; closed with *stack*. :raises UsageError, Missing, WrongType, OtherSide:"""
    if text.startswith("hf://"):
        match = _HF.match(text)
        if match is None:
            raise UsageError(why=f"{text!r} is not a Hub file", hint="write it as hf://org/name@revision/path/in/repo")
        hub = Hub(settings)
        listing = hub.listing(match["repo"], match["revision"] or "main")
        file = next(iter(listing.matching([_literal(match["path"])])))
        line = Line(hub.endpoint, match["repo"], listing.commit, timeout_s=settings.timeout, connections=1)
        stack.callback(line.close)
        return _RemoteFile(line, file, settings)
    if text.startswith("s3://"):
        raise UsageError(why=f"{text!r}: inspect reads paths and hf:// sources", hint="restore it with --into DIR and inspect the file")
    source = LocalFile(Path(text).expanduser())
    stack.callback(source.close)
    return source


def _literal(path: str) -> str:
    """*path* as a pattern that matches nothing but itself."""
    return re.sub(r"([\[*?])", r"[\1]", path)


class _RemoteFile(HubFile):
    def __init__(self, line: Line, file: LockedFile, settings: HubConfig) -> None:
        super().__init__(lambda: [line], file, patience_s=settings.patience)


def inspect_sources(sources: Sequence[str], settings: HubConfig, allow_globals: frozenset[str] = frozenset()) -> Report:
    """Inspect one source, or two and their difference."""
    report = Report("inspect")
    if not 1 <= len(sources) <= 2:
        raise UsageError(why="inspect takes one source, or two to compare", hint="see: steelyard inspect --help")
    found: list[tuple[str, Inspection]] = []
    with ExitStack() as stack:
        for text in sources:
            source = open_source(text, settings, stack)
            inspection = inspect(source, allow_globals=allow_globals)
            found.append((text, inspection))
            report.rows.append(Row(path=text, facts=inspection.as_json(), exit_code=0 if inspection.verdict in {"ok", "suspect"} else 1))
    if len(found) == 2:
        from steelyard.checkpoint.diff import compare

        try:
            difference = compare(found[0][1], found[1][1])
        except ValueError as error:
            raise BadAnswer(who="inspect", why=f"the two can't be compared: {error}") from error
        # What was asked for comes first; the two themselves follow.
        report.rows.insert(0, Row(path=f"{sources[0]} → {sources[1]}", facts=difference.as_json()))
    return report.close()
