"""inspect: a weights file by path, hf://repo_id[@revision]/path or s3://bucket/key, told from its headers; two of them: their difference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from steelyard import signatures
from steelyard.addresses import Opened, open_address
from steelyard.checkpoint import ByteProof, Fit, Inspection, fits, inspect, judge, signature, where_it_can
from steelyard.config import HubConfig
from steelyard.copies.base import Look
from steelyard.errors import BadAnswer, BadRecord, UsageError
from steelyard.loading import how_to_allow, weights_files
from steelyard.pieces import digest_source
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import ByteSource, LocalFile
from steelyard.watch import current_watch


class Belonging(NamedTuple):
    """Whose file a source is: *file* of *model*; *held* where it is that very file in the store."""

    model: str
    file: str
    held: bool = False


def inspect_sources(sources: Sequence[str], site: Site | None, *, model: str | None = None) -> Report:
    """Inspect one source, or two and their difference. Nothing is loaded, nothing is run, nothing is written.

    With a *site* a source that is a file of one of its models (by path or by repo) is judged as that: by its allowance, its signature and its record.
    *model* says so of any source. :raises UsageError: when there are not one or two, or *model* can't be meant.
    """
    report = Report("inspect")
    if not 1 <= len(sources) <= 2:
        raise UsageError(why="inspect takes one source, or two to compare", hint="see: steelyard inspect --help")
    if model is not None:
        if site is None:
            raise UsageError(why="--fits needs a config that names the model", hint="give --config PATH")
        site.config.chosen([model])
    settings = site.config.hub if site else HubConfig()
    replicas = site.config.replicas if site else {}
    found: list[Inspection] = []
    read: list[ByteSource] = []
    with ExitStack() as stack:
        for text in sources:
            opened = open_address(text, settings, replicas, stack)
            row, inspection = _look(text, opened, site, model)
            found.append(inspection)
            read.append(opened.source)
            report.rows.append(row)
        if len(found) == 2:
            # What was asked for comes first; the two themselves follow.
            report.rows.insert(0, Row(path=f"{sources[0]} → {sources[1]}", facts=_difference(found[0], found[1], read[0], read[1])))
    return report.close()


def _difference(before: Inspection, after: Inspection, old: ByteSource, new: ByteSource) -> dict[str, object]:
    """By checksums where the files have some, else by the bytes where those can be had for little."""
    from steelyard.checkpoint.diff import compare

    try:
        difference = compare(before, after, same_bytes=where_it_can(old, new, stop=current_watch().stop))
    except ValueError as error:
        raise BadAnswer(who="inspect", why=f"the two can't be compared: {error}") from error
    fit = fits(signature(before), after)
    return {**difference.as_json(), "compatible": fit.compatible, "fit": fit.as_json(), "why": fit.sentence}


def _look(text: str, opened: Opened, site: Site | None, model: str | None) -> tuple[Row, Inspection]:
    whose = _belonging(text, opened, site, model) if site else None
    inspection = inspect(opened.source, open_beside=opened.beside)
    fit: Fit | None = None
    proof = _proof_from_outside(opened)
    sha256 = opened.locked.sha256 if opened.locked else ""
    if site is not None and whose is not None:
        if inspection.verdict == "untrusted" and (settings := site.config.models[whose.model]).allow_globals:
            if not sha256 and isinstance(opened.source, LocalFile) and isinstance(settings.allow_globals, dict):
                sha256 = digest_source(opened.source, stop=current_watch().stop).sha256  # what is allowed is allowed for these bytes only
            inspection = inspect(opened.source, allow_globals=settings.allowed(sha256), open_beside=opened.beside)
        fit = signatures.fit_of(site, whose.model, whose.file, inspection)
        if whose.held:
            proof = _proof_in_store(site, whose)
    facts = {**inspection.as_json(), **judge(inspection, None, fit, proof).as_json(), "tensor_list": inspection.tensors_as_json()}
    if fit is not None:
        facts |= {"compatible": fit.compatible, "fit": fit.as_json()}
    if hint := how_to_allow(whose.model if whose else "NAME", inspection.reasons, inspection.globals, sha256):
        facts["hint"] = hint
    copy = "store" if whose and whose.held else "hub" if opened.hub else ""
    code = 0 if inspection.verdict in {"ok", "suspect"} else 1
    return Row(whose.model if whose else "", whose.file if whose else "", copy, text, facts, code), inspection


def _belonging(text: str, opened: Opened, site: Site, model: str | None) -> Belonging | None:
    """Whose file it is: of *model* where that is said, else the model in whose place or repo it lies."""
    path = opened.source.path.resolve() if isinstance(opened.source, LocalFile) else None
    try:
        lock = site.lock()
    except BadRecord:
        return None
    for name, locked in lock.models.items():
        if name not in site.config.models or (model and name != model):
            continue
        for file in locked.files:
            if path is not None and site.store.path_of_model(name, file.path).resolve() == path:
                return Belonging(name, file.path, held=True)
            if opened.hub and (opened.hub.repo_id, opened.hub.path) == (locked.repo_id, file.path):
                return Belonging(name, file.path)
    return _said_to_be(text, site, model) if model else None


def _said_to_be(text: str, site: Site, model: str) -> Belonging:
    """A source that is to be judged as a file of *model*: the one of its name, else the only one with weights."""
    locked = site.locked_model(model)
    manifest = site.manifest(model, locked.commit) if locked else None
    choices = [entry.path for entry in weights_files(manifest)] if manifest else []
    name = text.rpartition("/")[2]
    same = [one for one in choices if one.rpartition("/")[2] == name]
    if len(same or choices) != 1:
        hint = f"it has {', '.join(choices[:5])}" if choices else f"nothing is held of it; run: steelyard download {model}"
        raise UsageError(why=f"which file of {model} {name} is to be compared with can't be told", hint=hint)
    return Belonging(model, (same or choices)[0])


def _proof_from_outside(opened: Opened) -> ByteProof | None:
    if isinstance(opened.source, LocalFile):
        return None
    if opened.locked is not None:
        told = opened.locked.etag
        return ByteProof("unknown", "not-fetched", f"the Hub publishes {told[:12]}… for it; its bytes were not fetched")
    return ByteProof("unknown", "not-fetched", "its bytes were not fetched")


def _proof_in_store(site: Site, whose: Belonging) -> ByteProof | None:
    """What the last look at the bytes found, as long as the file is as it was then; nothing is read here."""
    started = time.monotonic()
    locked = site.lock().models[whose.model]
    manifest = site.manifest(whose.model, locked.commit)
    entry = manifest.get(whose.file)
    if entry is None:
        return None
    last = site.history.latest("store", whose.model, locked.commit, entry.path)
    finding = site.store.judge(manifest, entry, Look("quick"), last.finding if last else None)
    took = time.monotonic() - started
    if finding.ok and last is not None:
        return ByteProof("ok", "sha256", f"as agreed on when last proven, {last.at[:16].replace('T', ' ')} UTC; unchanged since", took)
    if finding.verdict in {"corrupt", "unreadable"}:
        return ByteProof("bad", "digest-mismatch", f"{finding.why}; run: steelyard repair {whose.model}", took)
    return ByteProof("unknown", "not-compared", f"{finding.why}; run: steelyard verify {whose.model}", took)


def show_tensors(report: Report, limit: int = 100_000) -> None:
    """The tensors of each source as a table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from steelyard.disk import gb

    for row in report.rows:
        listed = list(row.facts.get("tensor_list") or ())
        if not listed:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=Text(str(Path(row.path).name)), title_justify="left")
        for heading in ("tensor", "shape", "dtype", "size", "crc32"):
            table.add_column(heading)
        for one in listed[:limit]:
            crc = f"{one['crc32']:08x}" if one["crc32"] is not None else ""
            shape = "x".join(map(str, one["shape"])) or "scalar"
            table.add_row(
                *map(Text, (one["name"] if one["name"].isprintable() else repr(one["name"]), shape, one["dtype"], gb(one["nbytes"]), crc))
            )
        console = Console(highlight=False, soft_wrap=True)
        Console(width=max(100, console.measure(table, options=console.options.update(width=10_000)).maximum), highlight=False).print(table)
