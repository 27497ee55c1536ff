"""What a download will fetch: the lock's word where there is one, else the Hub's, written down before the first byte."""

from __future__ import annotations

import fnmatch
import logging

from steelyard.errors import ConfigBroken, LockMismatch
from steelyard.lock import LockedModel
from steelyard.scans import gate, scan_of
from steelyard.site import Site

log = logging.getLogger("steelyard")


def agree_on(site: Site, model: str) -> LockedModel:
    """What the lock holds of *model*; where it holds nothing, or lacks files that the config now asks for, ask the Hub and write it first.

    The commit of a locked model never changes here.
    :raises ConfigBroken: when two models would write the same file. :raises OtherSide, UnsafeName: :raises Untrusted: when the scan gate is shut.
    """
    locked = proposal(site, model)
    gate(site, model, locked)
    if locked != site.locked_model(model):
        site.agree(model, locked)
        log.info("%s: agreed on %s at %s (%s)", model, locked.repo_id, locked.commit, site.lock_path.name)
    return locked


def as_locked(site: Site, model: str) -> LockedModel:
    """What the lock holds of *model*, whatever the Hub says today: asks nobody, writes nothing.

    :raises LockMismatch: when it holds nothing, or not all that the config asks for. :raises ConfigBroken: as of agree_on().
    """
    held = site.locked_model(model)
    if held is None:
        hint = f"take {site.lock_path.name} from where the team keeps it, or agree on what is upstream now: steelyard download {model}"
        raise LockMismatch(model=model, why=f"{site.lock_path.name} has no entry for it", hint=hint)
    wanted = site.config.models[model].files
    if not _covers(held, wanted, site.config.models[model].revision):
        lacking = next(one for one in wanted or () if not any(fnmatch.fnmatchcase(file.path, one) for file in held.files))
        hint = f"agree on it and commit the lock: steelyard download {model}"
        raise LockMismatch(model=model, why=f"the config asks for {lacking}, {site.lock_path.name} holds no such file", hint=hint)
    _check_no_overlap(site, model, held)
    return held


def proposal(site: Site, model: str) -> LockedModel:
    """What would be agreed on now; writes nothing. Errors as of agree_on()."""
    wanted = site.config.models[model]
    held = site.locked_model(model)
    if held is not None and _covers(held, wanted.files, wanted.revision):
        _check_no_overlap(site, model, held)
        return held
    listing = site.hub.listing(wanted.repo_id, held.commit if held else wanted.revision, wanted.files)
    if listing.repo_id != wanted.repo_id:
        log.warning(
            "%s is called %s now; change repo_id in the config before the old name is given to others", wanted.repo_id, listing.repo_id
        )
    files = {file.path: file for file in listing.matching(wanted.files)}
    if held is not None:
        # What was agreed on stays as it was agreed on, whatever the Hub says of that commit today.
        files |= {file.path: file for file in held.files if file.path in files}
    scan = scan_of(listing, files)
    locked = LockedModel(
        wanted.repo_id,
        held.revision if held else wanted.revision,
        held.commit if held else listing.commit,
        tuple(sorted(files.values(), key=lambda file: file.path)),
        scan=scan.word,
        flagged=tuple(sorted(scan.flagged.items())),
    )
    _check_no_overlap(site, model, locked)
    return locked


def _covers(held: LockedModel, patterns: tuple[str, ...] | None, revision: str) -> bool:
    if held.revision != revision:
        log.warning(
            "the config asks for revision %r, the lock holds %r: fetching what is locked (steelyard update moves it)",
            revision,
            held.revision,
        )
    if patterns is None:
        return True
    return all(any(fnmatch.fnmatchcase(file.path, one) for file in held.files) for one in patterns)


def _check_no_overlap(site: Site, model: str, locked: LockedModel) -> None:
    """Two models must not write the same file; patterns can only be compared once the names are known.

    Where case does not count (exFAT, NTFS) Model.bin and model.bin are the same file too.
    """
    mine = {str(site.store.path_of_model(model, file.path)).casefold() for file in locked.files}
    if str(site.store.model_info_path).casefold() in mine:
        raise ConfigBroken(
            path=str(site.path),
            key=f"models.{model}.dir",
            why="its repo has a model_info.json, which would be overwritten; give it a dir",
        )
    folder = _folded(site, model)
    for other, held in site.lock().models.items():
        if other == model or other not in site.config.models:
            continue
        its = _folded(site, other)
        if not (folder.startswith(its) or its.startswith(folder)):
            continue
        for file in held.files:
            path = site.store.path_of_model(other, file.path)
            if str(path).casefold() in mine:
                raise ConfigBroken(
                    path=str(site.path), key=f"models.{model}.dir", why=f"models.{other} writes {path} too; give one of them another dir"
                )


def _folded(site: Site, model: str) -> str:
    """The folder of *model* as text that ends in a slash, where case does not count."""
    return f"{site.config.folder(model)}/".casefold()
