"""download: resolve, lock, check space, fetch, verify, publish into the store, and into the hub cache as its second view."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.agree import agree_on, as_locked
from steelyard.disk import device_of, gb
from steelyard.errors import NoSpace, NotLoadable, SteelyardError, Untrusted
from steelyard.fetch import SMALL_BYTES
from steelyard.fstab import refuse_bare
from steelyard.held import look_at_held
from steelyard.into_store import Action, Got, blob_of, fetch_file, fetch_small_files
from steelyard.lock import LockedFile, LockedModel
from steelyard.lookahead import NOTHING, Ahead, check_seen, look_ahead
from steelyard.papers import keep_papers
from steelyard.report import Report, Row
from steelyard.sharing import share_views
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.staging import partial_paths, reserved_bytes
from steelyard.steps import Run, run_here
from steelyard.sweep import Swept, sweep

__all__ = [
    "agree_on",
    "check_plan",
    "download",
    "fetch_file",
    "fetch_small_files",
    "keep_papers",
    "look_ahead",
    "look_at_held",
    "share_views",
]

log = logging.getLogger("steelyard")


def download(site: Site, models: Sequence[str] = (), *, locked: bool = False, run: Run = run_here) -> Report:
    """Bring every file of *models* (none: all) that the lock names into the store; agree on a lock first where there is none.

    *locked*: nothing but what the lock holds; where it holds nothing, or not all that the config asks for, that is an error.
    """
    report = Report("download")
    for model in site.config.chosen(list(models)):
        with report.collecting():
            # Both places before the first byte: a view that can't be made is no reason to find out after ten gigabytes.
            refuse_bare(site.hub_cache.root)
            site.store.ready(write=True)
            with site.writing("store", [model], "download"):
                report.extra["swept"] = (Swept(**report.extra.get("swept", {})) + sweep(site)).as_json()
                _download_model(site, model, report, run, only_locked=locked)
    return report.close()


def _download_model(site: Site, model: str, report: Report, run: Run, *, only_locked: bool) -> None:
    began = time.monotonic()
    locked = as_locked(site, model) if only_locked else run(agree_on, site, model)
    log.info("%s: %s at %s, %d files, %s", model, locked.repo_id, locked.commit[:8], len(locked.files), gb(locked.size_bytes))
    known = {entry.path for entry in site.manifest(model, locked.commit).files}
    held = run(look_at_held, site, model, locked)
    todo = [file for file in locked.files if file.path not in held]
    try:
        run(check_plan, site, model, locked, todo)
    except SteelyardError as error:
        if error.exit_code == 3:
            report.rows += [_row(site, model, locked, file.path, "refused", file=file, exit_code=3) for file in todo]
        raise
    ahead = run(look_ahead, site, model, locked, todo)
    failed = False
    for file in list(todo):
        try:
            check_seen(site, model, file, ahead.get(file.path, NOTHING).seen, fetched=False)
        except Untrusted as error:
            failed = True
            _keep(report, error)
            todo.remove(file)
            report.rows.append(_row(site, model, locked, file.path, "refused", file=file, ahead=ahead[file.path], exit_code=1))
    got: dict[str, Got] = {path: Got(entry, "unchanged" if path in known else "adopted") for path, entry in held.items()}
    small = [file for file in todo if file.size_bytes <= SMALL_BYTES]
    if small:
        try:
            got |= {one.entry.path: one for one in run(fetch_small_files, site, model, locked, small)}
        except SteelyardError as error:
            failed = True
            _keep(report, error)
    for file in todo:
        if file.size_bytes > SMALL_BYTES:
            try:
                got[file.path] = run(fetch_file, site, model, locked, file, ahead.get(file.path, NOTHING))
            except SteelyardError as error:
                failed = True
                _keep(report, error)
                if isinstance(error, Untrusted | NotLoadable):
                    report.rows.append(_row(site, model, locked, file.path, "refused", file=file, ahead=ahead.get(file.path), exit_code=1))
                if isinstance(error, NoSpace):
                    break  # what comes after it will not fit either
    if got:
        try:
            cached = [path for path in sorted(got) if got[path].cached]
            run(share_views, site, model, locked, [got[path].entry for path in sorted(got)], cached)
        except SteelyardError as error:
            # The store is whole; what the hub cache lacks is said, and made good by the next run.
            failed = True
            _keep(report, error)
    if not failed and any(one.bytes_fetched for one in got.values()):
        # Only while the Hub is being talked to anyway: a run that has nothing to fetch asks nobody.
        run(keep_papers, site, model, locked)
    report.rows += [_row(site, model, locked, path, got[path].action, got=got[path], ahead=ahead.get(path)) for path in sorted(got)]
    fetched = sum(one.bytes_fetched for one in got.values())
    seconds = round(time.monotonic() - began, 3)
    site.history.event("download", model, "store", "failed" if failed else "ok", commit=locked.commit, bytes=fetched, seconds=seconds)
    log.info("%s: %d of %d files are in the store, proven", model, len(got), len(locked.files))


def _keep(report: Report, error: SteelyardError) -> None:
    if error.exit_code == 130:
        raise error
    report.errors.append(error)


def _row(
    site: Site,
    model: str,
    locked: LockedModel,
    path: str,
    action: Action,
    *,
    got: Got | None = None,
    file: LockedFile | None = None,
    ahead: Ahead | None = None,
    exit_code: int = 0,
) -> Row:
    facts: dict[str, object] = {"action": action, "commit": locked.commit, "repo_id": locked.repo_id}
    if got is not None:
        facts |= {"sha256": got.entry.sha256, "size_bytes": got.entry.size_bytes, "bytes_fetched": got.bytes_fetched}
        if got.sources:
            facts["sources"] = got.sources
        if got.bytes_reused:
            facts["bytes_reused"] = got.bytes_reused
        if got.retries:
            facts["retries"] = got.retries
    elif file is not None:
        facts |= {"sha256": file.sha256 or None, "size_bytes": file.size_bytes, "bytes_fetched": ahead.bytes_fetched if ahead else 0}
    seen = (got.seen if got else None) or (ahead.seen if ahead else None)
    if seen is not None:
        facts |= seen.as_json()
    return Row(model, path, "store", str(site.store.path_of_model(model, path)), facts, exit_code)


def check_plan(site: Site, model: str, locked: LockedModel, todo: Sequence[LockedFile]) -> None:
    """Step: price the plan on every file system it touches: the files, their view in the hub cache, the reserve.

    :raises NoSpace: before the first byte, with what is missing and what `clean` could free there.
    :raises Refused: when `views` asks for what the file system can't.
    """
    store, staging = site.config.store, site.store.ours / "staging"
    size = sum(file.size_bytes for file in todo)
    reserve = store.min_free if size else 0
    staged = sum(_allocated(staging, file) for file in todo)
    begun = sum(reserved_bytes(site.hub_cache.ours / "staging", file.path, file.sha256) for file in todo if file.sha256)
    needs = [Need(site.store.root, max(0, size - staged), reserve)]
    uncached = sum(file.size_bytes for file in todo if not blob_of(site, locked, file).exists())
    if uncached and store.views in {"reflink", "hardlink"}:
        site.hub_cache.ready(write=True)
        if not site.hub_cache.can_share(site.store.root, store.views):
            raise site.hub_cache.cannot_share(site.store.root)
    if uncached and (store.views == "copy" or (store.views == "auto" and not site.hub_cache.can_share(site.store.root, "reflink"))):
        needs.append(Need(site.hub_cache.root, max(0, uncached - begun), reserve))
    try:
        check_room(needs)
    except NoSpace as error:
        error.hint = _could_free(site, error)
        raise


def _allocated(staging: Path, file: LockedFile) -> int:
    """What a partial has taken from the disk already: those bytes are not needed again."""
    partial, _ = partial_paths(staging, file.path, file.etag)
    try:
        return min(partial.stat().st_blocks * 512, file.size_bytes)
    except OSError:
        return 0


def _could_free(site: Site, error: NoSpace) -> str:
    from steelyard.clean import clean  # and with it half of the house, for a disk that is full

    place = Path(str(error.facts["place"]))
    try:
        rows = [row for row in clean(site).rows if row.path and device_of(Path(row.path)) == device_of(place)]
    except (SteelyardError, OSError):
        return error.hint
    freed = sum(int(row.facts.get("bytes", 0)) for row in rows)
    if not freed:
        return "steelyard clean would free nothing there; make room, or point [store] at a larger drive (steelyard move)"
    return f"steelyard clean --apply would free {gb(freed)} there; see what goes with: steelyard clean"
