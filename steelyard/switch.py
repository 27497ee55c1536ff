"""Which revision of a model is current: switched in one step that a kill can't leave half done, with the old one kept beside it.

An intent is written first, the lock last: the lock is the moment of the switch. Whoever comes upon an intent (any verb that writes, and verify)
finishes it when the lock has moved and takes it back when it has not.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steelyard.copies.base import Finding, Look, piece_holds
from steelyard.copies.folder import stat_of
from steelyard.disk import errors_of, fsync_folder, make_folder, write_atomically
from steelyard.errors import BadRecord, Corrupt, Missing, SteelyardError, Unreadable
from steelyard.lock import LockedModel, locked_from_record
from steelyard.manifest import FileEntry, Manifest, seal, unseal
from steelyard.names import confine
from steelyard.restore import Folder
from steelyard.sharing import point_cache
from steelyard.site import Site
from steelyard.source import LocalFile

log = logging.getLogger("steelyard")

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
"""What a file system without hard links answers (FAT, exFAT, FUSE), or one where the file has as many as it can."""

HELD = "held"
"""Under this name the history keeps how the files of held revisions lie, and when they were proven."""
SAMPLE_S = 0.5
"""For so long a rollback reads what it goes back to. Its proof is the file's state since it was last proven; rot that no state shows is what reading finds."""


def held_folder(site: Site, model: str, commit: str) -> Path:
    """Where the files of a revision that is not current are kept."""
    return confine(confine(site.store.ours / "held", model), commit)


def _intent_path(site: Site, model: str) -> Path:
    return confine(site.store.ours / "switch", f"{model}.json")


def held_revisions(site: Site, model: str) -> list[LockedModel]:
    """Revisions of *model* that are kept beside the current one, latest switched away from first. A damaged record is passed over."""
    home = confine(site.store.ours / "held", model)
    current = site.lock().get(model)
    found: list[tuple[int, LockedModel]] = []
    for folder in home.iterdir() if home.is_dir() else ():
        record = folder / "lock.json"
        try:
            found.append((record.stat().st_mtime_ns, locked_from_record(unseal(record.read_bytes(), record)["locked"], record, model)))
        except (OSError, BadRecord, KeyError) as error:
            log.warning("%s can't be used to go back to: %s", folder, error)
    # A switch that was stopped before it began leaves the record of what is current still.
    return [locked for _, locked in sorted(found, key=lambda pair: -pair[0]) if current is None or locked.commit != current.commit]


def switch(site: Site, model: str, old: LockedModel, new: LockedModel, manifest: Manifest, incoming: Path) -> SteelyardError | None:
    """Make *new* current. *incoming* holds those of its files that differ from *old*'s, proven; *old*'s are kept in its held folder.

    What could not be done after the lock had moved (the hub cache's ref, model_info.json) is returned: *new* is current then, and the next run
    of any verb that writes, or of verify, does it.
    :raises ReadOnly, NoSpace, Missing: what was current is then current and whole still.
    """
    changed = [file.path for file in new.files if _etag(old, file.path) != file.etag]
    gone = [file.path for file in old.files if new.get(file.path) is None]
    keep = held_folder(site, model, old.commit)
    make_folder(keep)
    write_atomically(keep / "lock.json", seal({"locked": old.as_record()}))
    intent = {
        "from": old.as_record(),
        "to": new.as_record(),
        "changed": changed,
        "gone": gone,
        "incoming": str(incoming.relative_to(site.store.ours)),
    }
    site.store.seal(manifest)
    write_atomically(_intent_path(site, model), seal(intent))
    try:
        for path in changed:
            _exchange(site.store.path_of_model(model, path), confine(keep, path), confine(incoming, path))
        site.agree(model, new)
    except BaseException:
        with contextlib.suppress(SteelyardError, OSError):
            recover(site, model)  # what stands in its way now does not when the next run tries
        raise
    try:
        with errors_of(site.store.root):
            _finish(site, model, old, new, gone, incoming)
    except SteelyardError as error:
        if error.exit_code == 130:
            raise
        log.warning("%s: %s is current, but not all that follows is done: %s", model, new.commit[:8], error)
        return error
    return None


def _etag(locked: LockedModel, path: str) -> str:
    file = locked.get(path)
    return file.etag if file else ""


def _exchange(final: Path, keep: Path, incoming: Path) -> None:
    """Give *incoming* the name *final*, and what had it the name *keep*. At no moment is there nothing under the final name."""
    with errors_of(final):
        keep.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not keep.exists():
            _name_too(final, keep)
        os.replace(incoming, final)
        fsync_folder(final.parent)


def _name_too(final: Path, other: Path) -> None:
    """Give the file at *final* the name *other* beside its own, and make that last before anything else takes *final*.

    On a file system without hard links it has only the other name until then; the intent brings it back where that does not come.
    """
    try:
        os.link(final, other)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(final, other)
    fsync_folder(other.parent)


def recover(site: Site, model: str) -> bool:
    """Bring a switch that was cut short to its end or its beginning, as the lock says; whether there was one. The caller holds the store's lock."""
    where = _intent_path(site, model)
    try:
        intent = unseal(where.read_bytes(), where)
    except FileNotFoundError:
        return False
    except BadRecord:
        log.warning("%s was never finished being written: nothing had been switched", where)
        where.unlink(missing_ok=True)
        return False
    old, new = locked_from_record(intent["from"], where, model), locked_from_record(intent["to"], where, model)
    incoming = site.store.ours / str(intent["incoming"])
    current = site.lock().get(model)
    if current is not None and current.commit == new.commit:
        log.warning("%s: the switch to %s is brought to its end", model, new.commit[:8])
        _finish(site, model, old, new, list(intent["gone"]), incoming)
        return True
    log.warning("%s: the switch to %s was cut short and is taken back; %s is current", model, new.commit[:8], old.commit[:8])
    keep = held_folder(site, model, old.commit)
    for path in intent["changed"]:
        final, kept = site.store.path_of_model(model, path), confine(keep, path)
        if kept.exists():
            with errors_of(final):
                staged = confine(incoming, path)
                staged.parent.mkdir(parents=True, exist_ok=True)
                if final.exists() and not staged.exists() and not final.samefile(kept):
                    _name_too(final, staged)  # proven bytes of the new revision: the next update need not fetch them again
                os.replace(kept, final)
                if kept.exists():
                    kept.unlink()  # rename between two names of one file does nothing (POSIX)
                fsync_folder(final.parent)
        elif _etag(old, path) == "" and final.exists():
            with errors_of(final):
                os.replace(final, confine(incoming, path))
    shutil.rmtree(keep, ignore_errors=True)
    where.unlink(missing_ok=True)
    return True


def _finish(site: Site, model: str, old: LockedModel, new: LockedModel, gone: Sequence[str], incoming: Path) -> None:
    """What follows the lock: files the new revision has no more, the hub cache's view, model_info.json, proofs. May be run again."""
    keep = held_folder(site, model, old.commit)
    for path in gone:
        final, kept = site.store.path_of_model(model, path), confine(keep, path)
        if final.exists() and not kept.exists():
            with errors_of(final):
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.replace(final, kept)
                fsync_folder(kept.parent)
                fsync_folder(final.parent)
    manifest = site.manifest(model, new.commit)
    _note_held(site, model, old.commit, keep)
    _note_proofs(site, manifest, old.commit)
    site.write_model_info()
    point_cache(site, manifest)
    shutil.rmtree(incoming, ignore_errors=True)
    _intent_path(site, model).unlink(missing_ok=True)


def _note_proofs(site: Site, manifest: Manifest, before: str) -> None:
    """Record the files as they lie now: renaming changed their ctime, not their bytes. A proof that is carried over keeps its age.

    What is known under neither name came with the update, and was proven on its way here.
    """
    model = manifest.model
    for entry in manifest.files:
        try:
            stat = stat_of(site.store.path_of(manifest, entry.path).stat())
        except OSError:
            continue
        at, proof = "", "sha256 on arrival"
        for copy, commit in ((HELD, manifest.commit), ("store", before)):
            last = site.history.latest(copy, model, commit, entry.path)
            if last is not None and last.finding.ok and same_bytes(last.finding.stat, stat):
                at, proof = last.at, last.finding.proof
                break
        site.history.record("store", model, manifest.commit, entry.path, Finding("ok", proof=proof, stat=stat), at=at)


def _note_held(site: Site, model: str, commit: str, keep: Path) -> None:
    """Record how the old revision's files lie, so that going back to them takes no reading. They were proven as the store's, if they were."""
    # A record that was damaged says nothing: going back then takes a reading, and is no reason to stop half-way here, for ever.
    for entry in site.manifest(model, commit).files:
        path = confine(keep, entry.path)
        last = site.history.latest("store", model, commit, entry.path)
        if last is not None and last.finding.ok and path.is_file():
            stat = stat_of(path.stat())
            if same_bytes(last.finding.stat, stat):
                site.history.record(HELD, model, commit, entry.path, Finding("ok", proof=last.finding.proof, stat=stat), at=last.at)


def same_bytes(before: str, now: str) -> bool:
    """Whether two states differ in nothing but ctime, which a rename or a link of our own changes."""
    one, other = before.split(":"), now.split(":")
    return len(one) == len(other) == 4 and (one[0], one[1], one[3]) == (other[0], other[1], other[3])


def back_to(site: Site, model: str, held: LockedModel, current: LockedModel) -> tuple[str, SteelyardError | None]:
    """Make *held*, a revision that is kept beside the current one, current: what its proof rests on, and switch()'s answer. No network.

    :raises Corrupt, Missing: when a held file is not whole; what is current stays so.
    """
    manifest = site.store.manifest(model, held.commit)
    if manifest is None:
        hint = f"bring it back from a replica: steelyard restore {model} --revision {held.commit} --into DIR"
        raise Missing(path=f"the manifest of {model} at {held.commit[:12]}", hint=hint)
    kept = held_folder(site, model, held.commit)
    proofs = []
    ends = time.monotonic() + SAMPLE_S
    for file in held.files:
        if _etag(current, file.path) != file.etag:
            proofs.append(_judge_held(site, model, held.commit, confine(kept, file.path), manifest[file.path], ends))
    left = switch(site, model, current, held, manifest, kept)
    return "; ".join(dict.fromkeys(proofs)), left


def _judge_held(site: Site, model: str, commit: str, path: Path, entry: FileEntry, ends: float) -> str:
    """What the file's proof rests on: its state, where that is as it was last proven, and as many pieces as can be read until *ends*; else every byte.

    :raises Corrupt, Missing:
    """
    last = site.history.latest(HELD, model, commit, entry.path)
    hint = f"bring it back from a replica: steelyard restore {model} --revision {commit} --into DIR"
    try:
        with LocalFile(path) as source:
            if last is not None and last.finding.ok and last.finding.stat == stat_of(source.stat):
                read = _sample(source, entry, ends)
                if read is not None:
                    rest = f"{read} of {len(entry.pieces)} pieces read" if read < len(entry.pieces) else "every piece read"
                    return f"unchanged since it was proven on {last.at[:10]}, {rest}"
    except Missing as error:
        raise Missing(path=str(path), hint=hint) from error
    lone = replace(entry, path=path.name)
    finding = Folder(path.parent).judge(Manifest(model, "", "", commit, (lone,)), lone, Look())
    if not finding.ok:
        raise Corrupt(path=str(path), why=f"{finding.verdict}: {finding.why}", ranges=finding.bad_ranges, hint=hint)
    return "every piece read"


def _sample(source: LocalFile, entry: FileEntry, ends: float) -> int | None:
    """How many pieces were read and hold, the two ends first and the others in any order, until *ends* [monotonic]; None when one does not."""
    others = list(range(1, len(entry.pieces) - 1))
    random.shuffle(others)
    read = 0
    for index in [*sorted({0, len(entry.pieces) - 1}), *others] if entry.pieces else ():
        if read >= 2 and time.monotonic() > ends:
            break
        try:
            if not piece_holds(source, entry, index):
                return None
        except Unreadable:
            return None
        read += 1
    return read
