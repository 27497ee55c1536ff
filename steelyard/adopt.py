"""adopt: take over weights that lie about already, if they prove, by every byte, to be what the Hub publishes.

Reports what every file is; only with apply=True does it act. What a download script left behind (placeholders, half files, hashes of its own
making) is named for what it is. Nothing of the user's is deleted: what proves is copied or recorded where it lies, and only what stands under a
final name of the store without being that file is put into quarantine.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steelyard.agree import agree_on, proposal
from steelyard.copies.base import ProvenReader, Rotten, corrupt
from steelyard.disk import gb
from steelyard.errors import Missing, SteelyardError, Unreadable
from steelyard.fetch import is_right
from steelyard.held import digests_of
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry
from steelyard.names import OURS
from steelyard.papers import keep_papers
from steelyard.quarantine import set_aside
from steelyard.report import Report, Row
from steelyard.sharing import share_views
from steelyard.site import Site
from steelyard.source import LocalFile, read_at
from steelyard.space import Need, check_room

log = logging.getLogger("steelyard")

Reason = Literal["placeholder", "lfs-pointer", "web-page", "half-file", "wrong-bytes", "self-made-hash", "unknown", "unreadable"]
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".onnx", ".jit", ".pkl", ".msgpack", ".h5")
MODEL_INFO = "model_info.json"
PLACEHOLDER_BYTES = 64 * 1024
TAIL_BYTES = 256 * 1024


@dataclass(frozen=True)
class Found:
    """A file below what is to be adopted. *wanted* is the file of the repo that it is, or would be by its name."""

    path: Path
    model: str = ""
    wanted: LockedFile | None = None
    entry: FileEntry | None = None
    """Set when it proves."""
    reasons: tuple[Reason, ...] = ()
    why: str = ""


def adopt(site: Site, source: Path, model: str | None = None, *, apply: bool = False) -> Report:
    """Judge every file of *source* (a folder or a file) against what *model* (None: every model) should be, and with *apply* take over what proves.

    :raises Missing: when *source* is not there.
    """
    report = Report("adopt")
    source = Path(os.path.abspath(source.expanduser()))
    if not source.exists():
        raise Missing(path=str(source), hint="name the folder or file that holds the weights")
    agreed: dict[str, LockedModel] = {}
    for name in site.config.chosen([model] if model else []):
        with report.collecting():
            agreed[name] = proposal(site, name)
    if not agreed:
        return report.close()
    files = list(_files(source))
    found = [_judge(site, path, agreed) for path in files if path.name != MODEL_INFO]
    told = [_judge_record(path, found) for path in files if path.name == MODEL_INFO]
    for name in agreed:
        mine = [one for one in found if one.model == name]
        taken: set[Path] = set()
        with report.collecting():
            if apply:
                site.store.ready(write=True)
                with site.writing("store", [name], "adopt"):
                    # First what stands falsely under a name: afterwards the file that proves may stand there.
                    _clear_the_names(site, name, [one for one in mine if one.entry is None])
                    taken = _take_over(site, name, [one for one in mine if one.entry is not None])
        report.rows += [_row(one, "adopted" if one.path in taken else "would-adopt") for one in mine]
    report.rows += [_row(one, "ignored") for one in [*found, *told] if one.model not in agreed or one in told]
    report.rows.sort(key=lambda row: row.path)
    proven = {(one.model, one.wanted.path) for one in found if one.entry is not None and one.wanted is not None}
    absent = [f"{name}: {file.path}" for name, locked in agreed.items() for file in locked.files if (name, file.path) not in proven]
    report.extra["not_found"] = absent
    report.extra["note"] = _note(report, apply, absent, model)
    return report.close()


def _note(report: Report, apply: bool, absent: Sequence[str], model: str | None) -> str:
    good = sum(row.facts["action"] in {"adopted", "would-adopt"} for row in report.rows)
    parts = [f"{good} of {len(report.rows)} files prove to be what the Hub has"]
    if good and not apply:
        parts.append("take them over with --apply")
    if absent:
        parts.append(
            f"not among them: {', '.join(absent[:3])}{' …' if len(absent) > 3 else ''}; steelyard download{f' {model}' if model else ''} fetches it"
        )
    return "; ".join(parts)


def _files(source: Path) -> Iterator[Path]:
    """The regular files of *source*; links to files are looked through (a hub cache is made of them), linked folders are not walked into."""
    if source.is_file():
        yield source
        return
    for base, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name != OURS)
        yield from (path for name in sorted(names) if (path := Path(base, name)).is_file() and not name.endswith(".steelyard.json"))


# --- judging


def _judge(site: Site, path: Path, agreed: dict[str, LockedModel]) -> Found:
    """What *path* proves to be: by digest, whatever its name; else what it would have to be by its name, and why it is not."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return Found(path, reasons=("unreadable",), why=error.strerror or "it can't be read")
    alike = [(name, file) for name, locked in agreed.items() for file in locked.files if file.size_bytes == size]
    # The one whose name or place it has first: two files of a repo may have the same bytes.
    alike.sort(key=lambda one: (site.store.path_of_model(*_place(one)) != path, Path(one[1].path).name != path.name))
    for name, file in alike:
        digests = digests_of(path, file)
        if digests is not None and is_right(file, digests):
            return Found(path, name, file, FileEntry.of(file.path, digests, file.etag))
    named = [(name, file) for name, locked in agreed.items() for file in locked.files if Path(file.path).name == path.name]
    named.sort(key=lambda one: site.store.path_of_model(*_place(one)) != path)
    model, wanted = named[0] if named else ("", None)
    reason, why = _why_not(path, size, wanted)
    return Found(path, model, wanted, None, (reason,), why)


def _place(one: tuple[str, LockedFile]) -> tuple[str, str]:
    return one[0], one[1].path


def _why_not(path: Path, size: int, wanted: LockedFile | None) -> tuple[Reason, str]:
    try:
        with LocalFile(path) as source:
            head = read_at(source, 0, 1024)
            tail = read_at(source, max(0, size - TAIL_BYTES), TAIL_BYTES)
    except SteelyardError as error:
        if not isinstance(error, Unreadable | Missing):
            raise
        return "unreadable", error.message
    weights = wanted is not None or path.suffix.lower() in WEIGHTS
    if head.startswith(b"version https://git-lfs"):
        return "lfs-pointer", "it is the pointer that git keeps instead of the file; the bytes were never fetched"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "web-page", "it is a web page: an error or a login page was saved under the file's name"
    if weights and size <= PLACEHOLDER_BYTES and _is_text(head) and path.suffix.lower() in WEIGHTS:
        return "placeholder", f"it is {size} bytes of text under the name of weights: a script's placeholder"
    if wanted is None:
        return "unknown", "no file of the models in the config has this name or these bytes"
    if size < wanted.size_bytes:
        return "half-file", f"it has {gb(size)} of {gb(wanted.size_bytes)}; steelyard download goes on with what is right of it"
    if size == wanted.size_bytes and tail and not any(tail):
        return "half-file", "it has the right size, but its end is empty: the room was reserved and never filled"
    return "wrong-bytes", f"its bytes are not those that the Hub publishes as {wanted.etag[:12]}…"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)


def _judge_record(path: Path, found: Sequence[Found]) -> Found:
    """A model_info.json: a hash in it that is not the published one was made from the file that it is to prove."""
    try:
        record = json.loads(path.read_bytes())
        hashes = {str(name): str(item.get("sha256", "")) for name, item in record.items() if isinstance(item, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return Found(path, reasons=("unknown",), why="it is no record of weights")
    by_name: dict[str, Any] = {one.path.name: one for one in found}
    for name, sha256 in hashes.items():
        one = by_name.get(Path(name).name)
        if one is not None and one.wanted is not None and one.wanted.sha256 and sha256 != one.wanted.sha256:
            why = f"its SHA-256 of {name} is not the published one: it was taken from the file it is to prove"
            return Found(path, one.model, reasons=("self-made-hash",), why=why)
    return Found(path, why="a record of hashes; nothing rests on it, and it is written anew")


# --- acting


def _take_over(site: Site, model: str, found: Sequence[Found]) -> set[Path]:
    """Record what lies in its place, copy in what lies elsewhere; what was taken over."""
    if not found:
        return set()
    locked = agree_on(site, model)
    in_place = [one for one in found if _stands_right(site, one)]
    entries = {one.entry.path: one.entry for one in in_place if one.entry is not None}
    todo = {one.entry.path: (one.path, one.entry) for one in found if one.entry is not None and one.entry.path not in entries}
    size = sum(entry.size_bytes for _, entry in todo.values())
    check_room([Need(site.store.root, size, site.config.store.min_free)])
    for path, entry in todo.values():
        reader = ProvenReader(entry, {"here": LocalFile(path)})
        try:
            site.store.bring(site.manifest(model, locked.commit).with_file(entry), entry, reader)
        except Rotten as error:
            raise corrupt(path, [error.where], "it changed since it was proven") from error
        finally:
            reader.close()
        entries[entry.path] = entry
    site.store.seal(site.manifest(model, locked.commit).with_files(entries.values()))
    share_views(site, model, locked, list(entries.values()))
    if site.hub.last_listing(locked.repo_id, locked.commit) is not None:
        keep_papers(site, model, locked)
    site.history.event("adopt", model, "store", "ok", commit=locked.commit, files=len(entries))
    return {one.path for one in found}


def _stands_right(site: Site, one: Found) -> bool:
    assert one.wanted is not None
    final = site.store.path_of_model(one.model, one.wanted.path)
    return final == one.path and not final.is_symlink()


def _clear_the_names(site: Site, model: str, found: Sequence[Found]) -> None:
    """A file that is not what its final name says would be loaded in good faith: it goes to quarantine, with the reason.

    A half file stays: a download takes what is right of it.
    """
    for one in found:
        if one.wanted is None or one.path.is_symlink() or one.reasons[0] in {"unreadable", "half-file"}:
            continue
        if one.path == site.store.path_of_model(model, one.wanted.path):
            kept = set_aside(site.store.ours / "quarantine", one.path, f"adopt: {one.reasons[0]}: {one.why}")
            log.warning("%s: %s; it is kept in %s", one.path, one.why, kept.parent)


def _row(one: Found, action: str) -> Row:
    facts: dict[str, object]
    if one.entry is not None:
        facts = {"verdict": "ok", "action": action, "sha256": one.entry.sha256, "size_bytes": one.entry.size_bytes}
    elif not one.reasons:
        facts = {"verdict": "ok", "action": "ignored", "why": one.why}
    elif one.reasons == ("unknown",) and one.path.suffix.lower() not in WEIGHTS:
        facts = {"verdict": "stray", "action": "ignored", "reasons": list(one.reasons), "why": one.why}
    else:
        verdict = {"unknown": "stray", "unreadable": "unreadable"}.get(one.reasons[0], "corrupt")
        facts = {"verdict": verdict, "action": "refused", "reasons": list(one.reasons), "why": one.why}
    name = one.wanted.path if one.wanted else one.path.name
    return Row(one.model, name, "", str(one.path), facts, 1 if facts["action"] == "refused" else 0)
