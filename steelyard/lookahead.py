"""Looking before leaping: the header of what is to be downloaded is read by Range first, and of what has arrived again before it gets its name."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steelyard.checkpoint import Inspection, Verdict, inspect, load_check
from steelyard.copies.hub import HubFile
from steelyard.disk import make_folder
from steelyard.errors import NotLoadable, SteelyardError, Stopped, Untrusted
from steelyard.fetch import SMALL_BYTES
from steelyard.loading import WEIGHTS, how_to_allow
from steelyard.lock import LockedFile, LockedModel
from steelyard.nearest import Nearest
from steelyard.pieces import MIB
from steelyard.second import SecondCopy
from steelyard.site import Site
from steelyard.source import BytesFile, ByteSource, LocalFile
from steelyard.staging import Partial, partial_paths
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

AT_ONCE = 4
PATIENCE_S = 5.0
"""A look that bad weather stops is given up soon: the file is looked at again when it has arrived."""
MOST_KEPT_BYTES = 2 * MIB
MOST_KEPT_OF_ALL_BYTES = 16 * MIB
"""Of hundreds of shards the ranges are not all kept in memory."""
TRUSTED = ("ok", "suspect")


@dataclass(frozen=True)
class Seen:
    """What the header of a file tells of it, and what looking cost."""

    verdict: Verdict
    codes: tuple[str, ...]
    sentence: str
    hint: str = ""
    requests: int = 0
    bytes_read: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Keys of a download row."""
        looked = {"requests": self.requests, "bytes_read": self.bytes_read, "seconds": round(self.seconds, 3)}
        facts: dict[str, Any] = {"trust": self.verdict, "looked": looked}
        if self.verdict != "ok":
            facts |= {"warning": self.sentence, "warnings": list(self.codes)}
        return facts


class Remembering:
    """A source whose ranges, once read, are kept: what the look fetched is not fetched again."""

    def __init__(self, inner: ByteSource, kept: Sequence[tuple[int, bytes]] = ()) -> None:
        self.inner = inner
        self.kept = list(kept)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def readinto(self, offset: int, buffer: memoryview) -> int:
        for start, data in self.kept:
            if start <= offset and offset + len(buffer) <= start + len(data):
                buffer[:] = data[offset - start : offset - start + len(buffer)]
                return len(buffer)
        got = self.inner.readinto(offset, buffer)
        if sum(len(data) for _, data in self.kept) + got <= MOST_KEPT_BYTES:
            self.kept.append((offset, bytes(buffer[:got])))
        return got

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class Ahead:
    """What looking ahead at one file brought: what was *seen* (None: no weights file) and the ranges that came over the line for it."""

    seen: Seen | None = None
    kept: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    bytes_fetched: int = 0

    def put(self, partial: Partial, second: SecondCopy | None = None) -> None:
        """The ranges into *partial*, as far as they are missing there, and into the copy that is written with it."""
        for gap_start, gap_end in partial.missing():
            for start, data in self.kept:
                first, last = max(start, gap_start), min(start + len(data), gap_end)
                # A range may lie in several that were read; journaled blocks must not overlap.
                if first < last and all(first >= end or last <= begin for begin, end in partial.have()):
                    view = memoryview(data)[first - start : last - start]
                    partial.put(first, view)
                    if second is not None:
                        second.write(first, view)


NOTHING = Ahead()


def look_ahead(site: Site, model: str, locked: LockedModel, files: Sequence[LockedFile]) -> dict[str, Ahead]:
    """Step: look into the large ones of *files* before they are downloaded: at the locked commit, by Range, less than 1 MiB of each.

    What can't be looked at now (weather, a server without ranges) is left out: it is looked at when it has arrived. So is what an earlier run began,
    and what was proven here before.
    """
    if site.config.models[model].trust == "off":
        return {}
    staging, known = site.store.ours / "staging", site.manifest(model, locked.commit)
    wanted = [
        file
        for file in files
        if file.size_bytes > SMALL_BYTES and known.get(file.path) is None and not partial_paths(staging, file.path, file.etag)[0].exists()
    ]
    if not wanted:
        return {}
    lines = site.lines(locked)
    patience_s = min(PATIENCE_S, site.config.hub.patience)
    hubs = {file.path: HubFile(lambda: lines, file, patience_s=patience_s) for file in wanted}
    room = MOST_KEPT_OF_ALL_BYTES
    near = Nearest.of(site, model, locked)

    def look(file: LockedFile) -> Ahead:
        hub = hubs[file.path]
        with contextlib.closing(Remembering(_cached(site, locked, file) or (near and near.source(file)) or hub)) as source:
            seen = _look(site, model, file, source)
        return Ahead(seen, tuple(source.kept) if hub.bytes_fetched else (), hub.bytes_fetched)

    found: dict[str, Ahead] = {}
    try:
        with ThreadPoolExecutor(AT_ONCE) as executor:
            for file, ahead in zip(wanted, executor.map(look, wanted), strict=True):
                room -= sum(len(data) for _, data in ahead.kept)
                found[file.path] = ahead if room >= 0 else replace(ahead, kept=())
    finally:
        for line in lines:
            line.close()
    return found


def _cached(site: Site, locked: LockedModel, file: LockedFile) -> ByteSource | None:
    """The hub cache's own copy, where it has one: no request then."""
    blob = site.hub_cache.repo_folder(locked.repo_id) / "blobs" / file.etag
    try:
        source = LocalFile(blob)
    except SteelyardError:
        return None
    if source.size_bytes == file.size_bytes:
        return source
    source.close()
    return None


def _look(site: Site, model: str, file: LockedFile, source: ByteSource) -> Seen | None:
    try:
        return seen_in(site, model, file, source)
    except Stopped:
        raise
    except SteelyardError as error:
        log.info("%s · %s: its header can't be looked at now: %s", model, file.path, error)
        return None


def seen_in(site: Site, model: str, file: LockedFile, source: ByteSource, sha256: str = "") -> Seen | None:
    """What *source*, the bytes of *file*, is; None for what is no weights file. :raises SteelyardError: when it can't be read."""
    allowed = site.config.models[model].allowed(sha256 or file.sha256)
    found = inspect(source, allow_globals=allowed)
    if found.format == "unknown" and found.verdict != "hostile" and not file.path.lower().endswith(WEIGHTS):
        return None
    return _seen(model, found, sha256 or file.sha256)


def _seen(model: str, found: Inspection, sha256: str) -> Seen:
    first = found.reasons[0].message if found.reasons and found.verdict != "ok" else ""
    hint = how_to_allow(model, found.reasons, found.globals, sha256)
    return Seen(found.verdict, found.codes, first, hint, found.requests, found.bytes_read, found.seconds)


def check_seen(site: Site, model: str, file: LockedFile, seen: Seen | None, *, fetched: bool) -> None:
    """Hold what was seen against the model's `trust`: hostile is refused, and with "require" all that is not trusted.

    :raises Untrusted: with the way to allow it, where there is one.
    """
    setting = site.config.models[model].trust
    if seen is None or setting == "off" or seen.verdict in TRUSTED:
        return
    name = f"{model} · {file.path}"
    if seen.verdict != "hostile" and setting != "require":
        log.warning("%s is %s: %s", name, seen.verdict, seen.sentence)
        return
    where = "its bytes wait in staging" if fetched else "nothing of it was fetched"
    way = seen.hint or f'to take it all the same, as bytes that must never be loaded: [models.{model}] trust = "off"'
    raise Untrusted(path=name, why=f"it is {seen.verdict}: {seen.sentence}", hint=f"{where}; {way}")


def check_arrived(site: Site, model: str, file: LockedFile, path: Path, sha256: str) -> Seen | None:
    """Look at a proven file in staging before it gets its name; load it too where the model's load_check says so.

    :raises Untrusted, NotLoadable: it stays in staging then, so that a changed setting costs no second download.
    """
    settings = site.config.models[model]
    seen: Seen | None = None
    if settings.trust != "off":
        with LocalFile(path) as source:
            seen = seen_in(site, model, file, source, sha256)
        check_seen(site, model, file, seen, fetched=True)
    if settings.load_check and file.path.lower().endswith(WEIGHTS):
        report = load_check(path, "cpu", stop=current_watch().stop, allow_globals=settings.allowed(sha256))
        if report.verdict not in {"ok", "unsupported"}:
            why = f"{report.verdict}: {report.reasons[0].message if report.reasons else 'for no reason told'}"
            hint = f"it was not published and waits in staging; [models.{model}] load_check = false takes it all the same"
            raise NotLoadable(path=f"{model} · {file.path}", why=why, reason=report.verdict, hint=hint)
    return seen


def check_content(site: Site, model: str, file: LockedFile, content: bytes, sha256: str) -> Seen | None:
    """`check_arrived` for a small file that is still in memory."""
    settings = site.config.models[model]
    if settings.load_check and file.path.lower().endswith(WEIGHTS):
        with tempfile.NamedTemporaryFile(dir=make_folder(site.store.ours / "staging"), prefix="load-", suffix=".partial") as draft:
            draft.write(content)
            draft.flush()
            return check_arrived(site, model, file, Path(draft.name), sha256)
    if settings.trust == "off":
        return None
    seen = seen_in(site, model, file, BytesFile(file.path, content), sha256)
    check_seen(site, model, file, seen, fetched=False)
    return seen
