"""What runs that were killed left behind, ours and huggingface_hub's: found by name, place and age, with what a run would still go on with left out."""

from __future__ import annotations

import os
import re
import stat as stat_bits
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from steelyard.copies.folder import FolderCopy
from steelyard.leaving import Leaving
from steelyard.site import Site
from steelyard.staging import partial_paths

LEFTOVER_AGE_S = 86_400.0
"""A partial that no lock names may be an update's or a restore's that will go on; nobody does after a day."""
UPDATE_AGE_S = 7 * 86_400.0
"""An update that failed to load may be tried again with what it fetched, for a week."""
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(partial|link)$")
_OURS = frozenset({".partial", ".journal", ".new"})
_REPOS = ("models--", "datasets--", "spaces--")


def wanted_partials(site: Site, staging: Path) -> set[Path]:
    """Partials and journals in *staging* that a run begun today would go on with."""
    wanted: set[Path] = set()
    for model, locked in site.lock().models.items():
        if model in site.config.models:
            manifest = site.manifest(model, locked.commit)
            for file in locked.files:
                entry = manifest.get(file.path)
                for identity in {file.etag, entry.sha256 if entry else file.etag}:
                    wanted |= set(partial_paths(staging, file.path, identity))
    return wanted


def orphans(site: Site, staging: Path) -> Iterator[Path]:
    """Files in *staging* that no run will go on with: hidden ones of a process that has ended at once, the others after a day."""
    wanted: set[Path] | None = None  # it takes a look at every model, and as a rule nothing lies there
    for path in files_in(staging.parent, staging.name):
        if hidden := _HIDDEN.fullmatch(path.name):
            if not _runs(int(hidden["pid"])):
                yield path
        elif path.suffix in _OURS and is_old(path):
            ended = path.suffix == ".journal" and not path.with_suffix(".partial").exists()
            if wanted is None:
                wanted = wanted_partials(site, staging)
            if ended or path not in wanted:
                yield path


def leftovers(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    """Ours in *copy*: partials, what a kill left half-written beside its final name, scratch of drills, old quarantine."""
    if copy.ours.is_symlink():
        return
    for path in orphans(site, copy.ours / "staging"):
        yield Leaving(copy.ours, path, "an orphaned partial: nothing that is agreed on needs it", copy.name)
    models = folders_in(copy.ours, "manifests")
    beside = [
        *files_in(copy.root),
        *files_in(copy.ours),
        *(path for model in models for path in files_in(copy.ours, "manifests", model.name)),
    ]
    for path in beside:
        if (hidden := _HIDDEN.fullmatch(path.name)) and hidden[3] == "partial" and not _runs(int(hidden["pid"])) and is_old(path):
            yield Leaving(copy.ours if path.is_relative_to(copy.ours) else copy.root, path, "a record that was never finished", copy.name)
    for path in folders_in(copy.ours, "drill"):
        if path.lstat().st_mtime < time.time() - LEFTOVER_AGE_S:
            yield Leaving(copy.ours, path, "the scratch folder of a drill that was killed", copy.name)
    for model in folders_in(copy.ours, "incoming"):
        for path in folders_in(copy.ours, "incoming", model.name):
            if newest(path) < time.time() - UPDATE_AGE_S:
                yield Leaving(copy.ours, path, "what an update fetched that was never switched to", copy.name, model.name)
    for case in folders_in(copy.ours, "quarantine"):
        record = case / "record.json"
        if record.is_file() and record.lstat().st_mtime < time.time() - site.config.store.keep_quarantine:
            yield Leaving(copy.ours, case, "in quarantine for longer than keep_quarantine", copy.name)


def unfinished_downloads(site: Site, copy: FolderCopy) -> Iterator[Leaving]:
    """Of huggingface_hub, which never goes on with them (each try opens a fresh one): in its cache, and where it was told a local_dir."""
    reason = "an unfinished download of huggingface_hub"
    if copy is site.hub_cache:
        repos = [("blobs",), *((repo.name, "blobs") for repo in folders_in(copy.root) if repo.name.startswith(_REPOS))]
        for below in repos:
            for path in files_in(copy.root, *below):
                if path.name.endswith(".incomplete") and is_old(path):
                    yield Leaving(copy.root, path, reason, copy.name)
    if copy is site.store:
        for top in dict.fromkeys([copy.root, *(site.config.folder(model) for model in site.config.models)]):
            for path in files_below(top, ".cache", "huggingface", "download"):
                if path.name.endswith(".incomplete") and is_old(path):
                    yield Leaving(copy.root, path, reason, copy.name)


# --- looking without following links


def folders_in(top: Path, *below: str) -> list[Path]:
    """The folders in the folder *below* *top*, none of them a link; empty where a part of *below* is one. *top* itself may be a link."""
    return [path for path in _entries(top, below) if path.is_dir() and not path.is_symlink()]


def files_in(top: Path, *below: str) -> list[Path]:
    """The regular files there, as folders_in()."""
    return [path for path in _entries(top, below) if _is_file(path)]


def _entries(top: Path, below: Sequence[str]) -> list[Path]:
    folder = _straight(top, below)
    try:
        return sorted(folder.iterdir()) if folder is not None else []
    except OSError:
        return []


def _straight(top: Path, below: Sequence[str]) -> Path | None:
    folder = top
    for part in below:
        folder /= part
        if folder.is_symlink():
            return None
    return folder if folder.is_dir() else None


def files_below(top: Path, *below: str) -> Iterator[Path]:
    """The regular files in the whole tree there; links are not followed."""
    folder = _straight(top, below)
    for base, folders, names in os.walk(folder) if folder is not None else ():
        folders.sort()
        yield from (path for name in sorted(names) if _is_file(path := Path(base, name)))


def _is_file(path: Path) -> bool:
    try:
        return stat_bits.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_old(path: Path) -> bool:
    """Whether nobody wrote to the file for a day."""
    try:
        return path.lstat().st_mtime < time.time() - LEFTOVER_AGE_S
    except OSError:
        return False


def newest(path: Path) -> float:
    """The latest modification in *path* and all below it; links are not followed."""
    found = path.lstat().st_mtime
    for base, folders, names in os.walk(path):
        found = max([found, *(os.lstat(os.path.join(base, name)).st_mtime for name in [*folders, *names])])  # noqa: PTH118
    return found


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
