"""Which snapshot is meant, and which manifest may be believed: our own record first, a replica's only as far as the lock agrees."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from steelyard.copies.base import Copy
from steelyard.copies.mount import MountReplica
from steelyard.errors import BadRecord, Missing, NotWhole, SteelyardError, UsageError
from steelyard.fetch import is_right
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source
from steelyard.published import is_commit
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")


def choose_commit(model: str, revision: str | None, locked: LockedModel | None, copies: Mapping[str, Copy]) -> str:
    """The full commit meant by *revision*, a prefix of 6 digits or more being enough; without one the locked or the newest snapshot."""
    held = [commit for copy in copies.values() for commit in copy.commits(model)]
    if revision is None:
        if locked is not None:
            return locked.commit
        if held:
            return held[-1]
        raise Missing(path=model, hint=f"no copy that can be read now has it; run: steelyard download {model}")
    wanted = revision.lower()
    if locked is not None and revision in {locked.commit, locked.revision}:
        return locked.commit
    found = sorted({commit for commit in [*held, *([locked.commit] if locked else [])] if len(wanted) >= 6 and commit.startswith(wanted)})
    if len(found) > 1:
        raise UsageError(why=f"{revision} fits several snapshots: {', '.join(one[:12] for one in found)}", hint="give more digits")
    if found:
        return found[0]
    shown = ", ".join(sorted({one[:12] for one in held})) or "none"
    what = revision if not is_commit(wanted) else wanted[:12]
    raise Missing(path=f"{model} at {what}", hint=f"snapshots that can be read now: {shown}")


def known_manifest(site: Site, model: str, commit: str, locked: LockedModel | None, copies: Mapping[str, Copy]) -> tuple[Manifest, bool]:
    """The manifest to work by, and whether its pieces are our own record (False: a replica's, to be proven by SHA-256).

    Never one that contradicts the lock. :raises Missing: when none is to be had.
    """
    own = site.manifest(model, commit)
    agreed = {file.path: file for file in locked.files} if locked is not None and locked.commit == commit else None
    if own.files and (agreed is None or len(own.files) == len(agreed)):
        return own, True
    problem: SteelyardError | None = None
    for name, copy in copies.items():
        try:
            found = copy.manifest(model, commit)
        except BadRecord as error:
            problem = error
            continue
        if found is None:
            continue
        if agreed is not None and not all(_agrees(found.get(path), file) for path, file in agreed.items()):
            log.warning("the manifest in %s contradicts the lock and is not used", name)
            problem = BadRecord(path=f"{name}: {model}/{commit[:12]}", why="it contradicts the lock", sealed=True)
            continue
        if agreed is not None:
            # What the lock does not name was not agreed on, whatever a replica's manifest adds.
            return replace(found, files=tuple(entry for entry in found.files if entry.path in agreed)), False
        log.warning("no record of our own vouches for %s at %s: it is taken on the word of %s", model, commit[:8], name)
        return found, False
    if agreed is not None and not (isinstance(problem, BadRecord) and problem.sealed):
        for name, copy in copies.items():
            if isinstance(copy, MountReplica) and (proven := _proven_by_the_lock(site, copy, model, locked)) is not None:
                log.warning("%s: the manifest in %s is lost or damaged; every file there is what was agreed on", model, name)
                return proven, False
    if problem is not None:
        raise problem
    if own.files:
        return own, True
    raise Missing(path=f"{model} at {commit[:12]}", hint=f"no copy that can be read now has it; run: steelyard download {model}")


def _proven_by_the_lock(site: Site, copy: MountReplica, model: str, locked: LockedModel | None) -> Manifest | None:
    """The manifest made anew from a drive's plain files, each read and proven by the digest that was agreed on; None where one does not prove right."""
    if locked is None:
        return None
    manifest = Manifest(model, locked.repo_id, locked.revision, locked.commit, ())
    if not all(copy.path_of(manifest, file.path).is_file() for file in locked.files):
        return None
    watch = current_watch()
    for file in locked.files:
        try:
            with (
                LocalFile(copy.path_of(manifest, file.path)) as source,
                watch.job(f"prove {file.path} in {copy.name}", file.size_bytes) as job,
            ):
                digests = digest_source(source, stop=watch.stop, on_bytes=partial(watch.advance, job), git=True)
        except NotWhole:
            return None
        if not is_right(file, digests):
            return None
        manifest = manifest.with_file(FileEntry.of(file.path, digests, file.etag))
    return manifest


def _agrees(entry: FileEntry | None, file: LockedFile) -> bool:
    return (
        entry is not None
        and entry.size_bytes == file.size_bytes
        and (entry.sha256 == file.sha256 if file.sha256 else entry.etag == file.git_sha1)
    )
