"""Which revision of a model is current: switched in one step that a kill can't leave half done, with the old one kept beside it.

An intent is written first, the lock last: the lock is the moment of the switch. Whoever comes upon an intent (any verb that writes, and verify)
finishes it when the lock has moved and takes it back when it has not.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steelyard.copies.base import Finding, Look
from steelyard.copies.folder import stat_of
from steelyard.disk import errors_of, fsync_folder, make_folder, write_atomically
from steelyard.errors import BadRecord, Corrupt, Missing
from steelyard.lock import LockedModel, locked_from_record
from steelyard.manifest import FileEntry, Manifest, seal, unseal
from steelyard.names import confine
from steelyard.restore import Folder
from steelyard.site import Site

log = logging.getLogger("steelyard")


def held_folder(site: Site, model: str, commit: str) -> Path:
    """Where the files of a revision that is not current are kept."""
    return confine(confine(site.store.ours / "held", model), commit)


def _intent_path(site: Site, model: str) -> Path:
    return confine(site.store.ours / "switch", f"{model}.json")


def held_revisions(site: Site, model: str) -> list[LockedModel]:
    """Revisions of *model* that are kept beside the current one, latest switched away from first. A damaged record is passed over."""
    home = confine(site.store.ours / "held", model)
    found: list[tuple[int, LockedModel]] = []
    for folder in home.iterdir() if home.is_dir() else ():
        record = folder / "lock.json"
        try:
            found.append((record.stat().st_mtime_ns, locked_from_record(unseal(record.read_bytes(), record)["locked"], record, model)))
        except (OSError, BadRecord, KeyError) as error:
            log.warning("%s can't be used to go back to: %s", folder, error)
    return [locked for _, locked in sorted(found, key=lambda pair: -pair[0])]


def switch(site: Site, model: str, old: LockedModel, new: LockedModel, manifest: Manifest, incoming: Path) -> None:
    """Make *new* current. *incoming* holds those of its files that differ from *old*'s, proven; *old*'s are kept in its held folder.

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
        recover(site, model)
        raise
    _finish(site, model, old, new, gone, incoming)


def _etag(locked: LockedModel, path: str) -> str:
    file = locked.get(path)
    return file.etag if file else ""


def _exchange(final: Path, keep: Path, incoming: Path) -> None:
    """Give *incoming* the name *final*, and what had it the name *keep*. At no moment is there nothing under the final name."""
    with errors_of(final):
        keep.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not keep.exists():
            try:
                os.link(final, keep)
            except OSError:
                # A file system without hard links: for a moment only the old name under "held" is there; the intent brings it back.
                os.replace(final, keep)
            fsync_folder(keep.parent)
        os.replace(incoming, final)
        fsync_folder(final.parent)


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
                    os.replace(final, staged)  # proven bytes of the new revision: the next update need not fetch them again
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
    from steelyard.download import share_views

    keep = held_folder(site, model, old.commit)
    for path in gone:
        final, kept = site.store.path_of_model(model, path), confine(keep, path)
        if final.exists() and not kept.exists():
            with errors_of(final):
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.replace(final, kept)
    manifest = site.manifest(model, new.commit)
    _note_proofs(site, manifest)
    _note_held(site, model, old.commit, keep)
    share_views(site, model, new, manifest.files)
    shutil.rmtree(incoming, ignore_errors=True)
    _intent_path(site, model).unlink(missing_ok=True)


def _note_proofs(site: Site, manifest: Manifest) -> None:
    """Record the files as they lie now: they were proven on their way here, and renaming changed their ctime."""
    for entry in manifest.files:
        try:
            stat = stat_of(site.store.path_of(manifest, entry.path).stat())
        except OSError:
            continue
        finding = Finding("ok", proof="proven before the switch", bytes_read=0, stat=stat)
        site.history.record("store", manifest.model, manifest.commit, entry.path, finding)


def _note_held(site: Site, model: str, commit: str, keep: Path) -> None:
    """Record how the old revision's files lie, so that going back to them takes no reading. They were proven as the store's, if they were."""
    manifest = site.store.manifest(model, commit)
    for entry in manifest.files if manifest else ():
        path = confine(keep, entry.path)
        last = site.history.latest("store", model, commit, entry.path)
        if last is not None and last.finding.ok and path.is_file() and same_bytes(last.finding.stat, stat_of(path.stat())):
            site.history.record(
                "held", model, commit, entry.path, Finding("ok", proof="proven before the switch", stat=stat_of(path.stat()))
            )


def same_bytes(before: str, now: str) -> bool:
    """Whether two states differ in nothing but ctime, which a rename or a link of our own changes."""
    one, other = before.split(":"), now.split(":")
    return len(one) == len(other) == 4 and (one[0], one[1], one[3]) == (other[0], other[1], other[3])


def back_to(site: Site, model: str, held: LockedModel, current: LockedModel) -> None:
    """Make *held*, a revision that is kept beside the current one, current. No network.

    :raises Corrupt, Missing: when a held file is not whole; what is current stays so.
    """
    manifest = site.store.manifest(model, held.commit)
    if manifest is None:
        hint = f"bring it back from a replica: steelyard restore {model} --revision {held.commit} --into DIR"
        raise Missing(path=f"the manifest of {model} at {held.commit[:12]}", hint=hint)
    kept = held_folder(site, model, held.commit)
    for file in held.files:
        if _etag(current, file.path) != file.etag:
            _judge_held(site, model, held.commit, confine(kept, file.path), manifest[file.path])
    switch(site, model, current, held, manifest, kept)


def _judge_held(site: Site, model: str, commit: str, path: Path, entry: FileEntry) -> None:
    """By its state where that is as it was last proven, else by every byte."""
    last = site.history.latest("held", model, commit, entry.path)
    try:
        if last is not None and last.finding.ok and last.finding.stat == stat_of(path.stat()):
            return
    except OSError as error:
        raise Missing(path=str(path), hint=f"steelyard restore {model} --revision {commit} --into DIR") from error
    lone = replace(entry, path=path.name)
    finding = Folder(path.parent).judge(Manifest(model, "", "", commit, (lone,)), lone, Look())
    if not finding.ok:
        hint = f"bring it back from a replica: steelyard restore {model} --revision {commit} --into DIR"
        raise Corrupt(path=str(path), why=f"{finding.verdict}: {finding.why}", ranges=finding.bad_ranges, hint=hint)
