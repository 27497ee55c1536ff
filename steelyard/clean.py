"""clean: what may go, and with apply=True its removal. Only what we recorded or a pattern named; never the last proven copy of anything."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from steelyard.caches import caches
from steelyard.clean_bucket import clean_bucket
from steelyard.copies.folder import FolderCopy, below
from steelyard.copies.mount import MountReplica
from steelyard.disk import device_of, errors_of, fsync_folder, gb, make_folder
from steelyard.errors import BadRecord, Busy, Refused, SteelyardError
from steelyard.former import former_places
from steelyard.leaving import Guard, Leaving, priced, remove
from steelyard.leftovers import leftovers, unfinished_downloads
from steelyard.names import OURS
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.superseded import GOING, superseded_revisions, superseded_snapshots
from steelyard.traffic import bucket_of

log = logging.getLogger("steelyard")


def clean(site: Site, *, apply: bool = False, pip: bool = False) -> Report:
    """Rows of what would be removed, or with *apply* was. A copy that another run writes to, or that is away, is left alone and said so.

    *pip*: pip's cache too. `bytes` of a row is what its going frees; `measured_bytes`, what the file systems say afterwards.
    """
    report = Report("clean")
    with report.collecting():
        guard = Guard(site)
        with _measured(site, report if apply else None), ExitStack() as locks:
            planned: list[tuple[Leaving, FolderCopy | None]] = []
            for name, copy in site.copies.items():
                if (bucket := bucket_of(site, name)) is not None:
                    with report.collecting(), site.writing(name, list(site.config.models), "clean") if apply else nullcontext():
                        bucket.ready(write=False)
                        clean_bucket(site, bucket, report, apply=apply)
                if not isinstance(copy, FolderCopy):
                    continue
                with report.collecting():
                    try:
                        copy.ready(write=apply and isinstance(copy, MountReplica))
                        if apply and copy.ours.is_dir():
                            locks.enter_context(site.writing(name, list(site.config.models), "clean"))
                    except (Busy, Refused) as error:
                        log.warning("%s is left alone: %s", name, error.message)
                        continue
                    except SteelyardError:
                        continue  # no store yet
                    planned += [(one, copy) for one in _of_copy(site, copy)]
            with report.collecting():
                planned += [(one, None) for one in caches(site, pip=pip)]
            _go_through(site, report, planned, guard, apply)
    freed = sum(int(row.facts["bytes"]) for row in report.rows)
    if apply and report.rows:
        report.extra["note"] = f"{gb(freed)} freed; the file systems say {gb(report.extra.get('measured_bytes', 0))}"
    elif report.rows:
        report.extra["note"] = f"{gb(freed)} would be freed; remove it with: steelyard clean --apply"
    return report.close()


def _of_copy(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    if isinstance(copy, MountReplica):
        yield from superseded_snapshots(site, copy)
    with suppress(BadRecord):
        yield from superseded_revisions(site, copy)
    yield from leftovers(site, copy)
    yield from unfinished_downloads(site, copy)
    if copy is site.store:
        yield from former_places(site)


def _go_through(site: Site, report: Report, planned: Sequence[tuple[Leaving, FolderCopy | None]], guard: Guard, apply: bool) -> None:
    """Price all together, since bytes may have names in several copies, then name or remove one by one."""
    copies: dict[Path, FolderCopy | None] = {}
    going: list[Leaving] = []
    for one, copy in planned:
        if guard.allows(one):
            going.append(one)
            copies[one.path] = copy
        else:
            log.warning("%s holds what must stay and is left alone (%s)", one.path, one.reason)
    for one in priced(going):
        copy = copies[one.path]
        with report.collecting():
            if apply:
                with errors_of(one.path), suppress(FileNotFoundError):
                    _remove(copy, one)
                log.info("removed %s (%s)", one.path, one.reason)
            facts = {"action": "removed" if apply else "would-remove", "bytes": one.bytes, "reason": one.reason}
            if one.commit:
                facts["commit"] = one.commit
                if apply:
                    site.history.event("clean", one.model, one.copy, "removed", commit=one.commit, bytes=one.bytes)
            report.rows.append(Row(one.model, "", one.copy, str(one.path), facts))


def _remove(copy: FolderCopy | None, one: Leaving) -> None:
    """A snapshot of a drive is first renamed out of sight, so that none is ever half there."""
    if copy is None or not one.root.is_relative_to(copy.root):
        remove(one.root, one)
        return
    with copy.held() as held:
        path, top = below(held, copy.root, one.path), below(held, copy.root, one.root)
        model = path.parent
        snapshot = one.commit and isinstance(copy, MountReplica)
        if snapshot:
            path = make_folder(held / OURS / GOING) / f"{one.model}-{one.commit}"
            model.joinpath(one.path.name).rename(path)
            fsync_folder(model)
        remove(top, one, path)
        if snapshot and not any(model.iterdir()):
            model.rmdir()


@contextmanager
def _measured(site: Site, report: Report | None) -> Iterator[None]:
    """Ask the file systems before and after how much is free; another program that writes meanwhile is in that number too."""
    if report is None:
        yield
        return
    store = site.config.store
    places = [store.models, store.hf_home, *([store.outputs] if store.outputs else [])]
    places += [copy.root for copy in site.replicas.values() if isinstance(copy, MountReplica)]
    by_device = {device_of(place): place for place in places if place.is_dir()}
    before = {device: _free(place) for device, place in by_device.items()}
    yield
    after = {device: _free(place) for device, place in by_device.items()}
    report.extra["measured_bytes"] = max(0, sum(after[device] - before[device] for device in by_device))


def _free(place: Path) -> int:
    """Free bytes once the file system has carried out what it was told (btrfs and xfs free blocks later)."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(fd)
        seen = os.fstatvfs(fd)
        return seen.f_bfree * seen.f_frsize
    finally:
        os.close(fd)
