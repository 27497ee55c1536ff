"""What a new revision does to the weights: tensor by tensor from the headers of both, so before anything is downloaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from steelyard.checkpoint import Inspection, compare, fits, inspect, signature, where_it_can
from steelyard.checkpoint.inspection import histogram
from steelyard.copies.hub import HubFile
from steelyard.delta import shared_bytes
from steelyard.errors import SteelyardError
from steelyard.line import Line
from steelyard.loading import WEIGHTS
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import Manifest
from steelyard.signatures import expected
from steelyard.site import Site
from steelyard.source import ByteSource
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Files = Mapping[str, LockedFile]
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_WORDS = re.compile(
    r"(^|/)(readme|license|licence|notice|citation|\.gitattributes|\.gitignore)|\.(md|png|jpe?g|gif|svg|webp|mp4|pdf)$", re.IGNORECASE
)
"""Files that no program loads."""
_LISTS = ("added", "removed", "reshaped", "retyped", "changed")


@dataclass
class WeightsChange:
    """*compatible*: whether a strict loader of the held version takes the new one; None where nobody can tell. *sentences* say why.

    *tensors* is the difference as inspect of two gives it, over all changed weights; None where no two could be compared.
    *before* and *after* are bytes in memory by dtype. *bad* are new files that nobody should take as they are: name -> broken, hostile or untrusted.
    *fetch_bytes* is what an update fetches, at most where it is not *exact*.
    """

    compatible: bool | None = None
    tensors: dict[str, Any] | None = None
    sentences: list[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    fetch_bytes: int = 0
    exact: bool = True


def weights_change(site: Site, model: str, locked: LockedModel, commit: str, changed: Sequence[str], upstream: Files) -> WeightsChange:
    """Compare what *changed* between the held files and *upstream* (all that are wanted at *commit*)."""
    found = WeightsChange()
    held = {file.path: file for file in locked.files}
    fetched = [upstream[path] for path in changed if path in upstream]
    same_bytes = {file.etag for file in locked.files}
    shared: dict[str, int | None] = {file.path: file.size_bytes for file in fetched if file.etag in same_bytes}
    answers: list[bool | None] = []
    groups: dict[str, list[str]] = {}
    for path in changed:
        if is_weights(path):
            groups.setdefault(_SHARD.sub("", path), []).append(path)
        else:
            answers.append(_other(path, held, upstream, found))
    for name, paths in sorted(groups.items()):
        before, after = [path for path in paths if path in held], [path for path in paths if path in upstream]
        if before and after:
            answers.append(_compare(site, model, locked, commit, name, before, after, upstream, shared, found, several=len(groups) > 1))
        elif before:
            found.sentences.append(f"{name} is gone upstream")
            answers.append(False)
        else:
            answers.append(True)  # one more file changes nothing for who loads the others
    found.compatible = False if False in answers else None if None in answers else True
    for file in fetched:
        known = shared.get(file.path, 0 if file.path not in held else None)
        found.exact = found.exact and (known is not None or not is_weights(file.path))
        found.fetch_bytes += file.size_bytes - (known or 0)
    return found


def is_weights(path: str) -> bool:
    return path.lower().endswith(WEIGHTS)


def _other(path: str, held: Files, upstream: Files, found: WeightsChange) -> bool | None:
    if _WORDS.search(path) or path not in held:
        return True
    if path not in upstream:
        found.sentences.append(f"{path} is gone upstream")
        return False
    found.sentences.append(f"{path} changed: what that does to a program that reads it, only a person can tell")
    return None


def _compare(
    site: Site, model: str, locked: LockedModel, commit: str, name: str, before: Sequence[str], after: Sequence[str],
    upstream: Files, shared: dict[str, int | None], found: WeightsChange, *, several: bool,
) -> bool | None:  # fmt: skip
    """One weights file, or one set of shards, which is compared as a whole: a tensor may have moved from one shard to the next."""
    allowed = site.config.models[model].allowed
    try:
        with ExitStack() as stack:
            sources = {path: _held(site, model, locked, path, stack) for path in before}
            theirs = {path: _remote(site, locked.repo_id, commit, upstream[path], stack) for path in after}
            old = {path: inspect(source, allow_globals=allowed(sha256)) for path, (source, sha256) in sources.items()}
            new = {path: inspect(source, allow_globals=allowed(sha256)) for path, (source, sha256) in theirs.items()}
            one, other = _together(list(old.values())), _together(list(new.values()))
            alone = len(old) == len(new) == 1
            same = where_it_can(sources[before[0]][0], theirs[after[0]][0], stop=current_watch().stop) if alone else None
            difference = compare(one, other, same_bytes=same)
    except (SteelyardError, ValueError) as error:
        log.warning("%s: the tensors can't be compared: %s", name, error)
        found.sentences.append(f"{name}: the headers could not be compared ({error})")
        return None
    for path in after:
        if path not in shared:
            shared[path] = shared_bytes(old[path], new[path]) if path in old else 0
    if other.verdict in {"broken", "hostile", "untrusted"}:
        reason = other.reasons[0].message if other.reasons else other.verdict
        found.sentences.append(f"the new {name} is {other.verdict}: {reason}")
        found.bad[name] = other.verdict
    if other.verdict in {"broken", "hostile"} and not other.tensors:
        return False  # a list of all tensors as removed would only hide that
    _add(found, difference.as_json(), f"{name}: " if several else "")
    for count, into in ((one, found.before), (other, found.after)):
        for dtype, nbytes in histogram(count.tensors).items():
            into[dtype] = into.get(dtype, 0) + nbytes
    if name in found.bad:
        return False
    if one.format != other.format:
        found.sentences.append(f"{name} was {one.format} and is {other.format} now: another loader is needed")
        return False
    if one.weights_key != other.weights_key:
        found.sentences.append(f"the weights lay under {one.weights_key or 'no key'} and lie under {other.weights_key or 'no key'} now")
        return False
    said = expected(site, model, before[0]) if len(before) == 1 else None
    fit = fits(said or signature(one), other)
    if fit.sentence:
        found.sentences.append(f"{name}: {fit.sentence}")
    return fit.compatible


def _together(inspections: Sequence[Inspection]) -> Inspection:
    """Shards as one; the worst verdict among them is the set's."""
    worst = max(inspections, key=lambda one: one.verdict not in {"ok", "suspect"})
    return replace(worst, tensors=tuple(tensor for one in inspections for tensor in one.tensors))


def _add(found: WeightsChange, difference: dict[str, Any], prefix: str) -> None:
    """Put the difference of one set to what is known of the others; names get the set's where there are several."""
    total = found.tensors or {**{kind: [] for kind in _LISTS}, "unknown": 0, "unchanged": 0, "parts": [], "details": {}}
    for kind in _LISTS:
        if difference[kind] is None or total[kind] is None:
            total[kind] = None if not total[kind] and not difference[kind] else total[kind] or difference[kind]
        else:
            total[kind] = [*total[kind], *(prefix + name for name in difference[kind])]
    total["unknown"] += difference["unknown"]
    total["unchanged"] += difference["unchanged"]
    total["parts"] += [{**part, "part": prefix + part["part"]} for part in difference["parts"]]
    total["details"] |= {prefix + name: told for name, told in difference["details"].items()}
    found.tensors = total


def _held(site: Site, model: str, locked: LockedModel, path: str, stack: ExitStack) -> tuple[ByteSource, str]:
    """The bytes and their SHA-256. From our own proven file; from the Hub at the locked commit where the store does not have it."""
    file = next(one for one in locked.files if one.path == path)
    manifest: Manifest = site.manifest(model, locked.commit)
    entry = manifest.get(path)
    if entry is not None:
        try:
            source = site.store.open(manifest, entry)
        except SteelyardError:
            return _remote(site, locked.repo_id, locked.commit, file, stack)
        stack.callback(source.close)
        if source.size_bytes == entry.size_bytes:
            return source, entry.sha256
    return _remote(site, locked.repo_id, locked.commit, file, stack)


def _remote(site: Site, repo_id: str, commit: str, file: LockedFile, stack: ExitStack) -> tuple[ByteSource, str]:
    settings = site.config.hub
    line = Line(site.hub.endpoint, repo_id, commit, timeout_s=settings.timeout, connections=1)
    stack.callback(line.close)
    return HubFile(lambda: [line], file, patience_s=settings.patience), file.sha256
