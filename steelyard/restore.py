"""restore: bring a model back from its copies, piece by piece from whichever is good, and prove the agreed SHA-256 before it gets its name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.batches import batches
from steelyard.copies.base import Copy, CopyKind, Finding, Look, ProvenReader, Rotten
from steelyard.copies.folder import FolderCopy, stat_of
from steelyard.copies.hub import HubFile
from steelyard.disk import existing_parent, make_folder, probe_write
from steelyard.errors import Archived, Corrupt, NotWhole, OtherSide, Refused, SteelyardError, Unreachable, UsageError
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import OURS, confine
from steelyard.papers import restore_papers
from steelyard.pieces import digest_source
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.snapshots import choose_commit, known_manifest
from steelyard.source import ByteSource
from steelyard.space import Need, check_room
from steelyard.staging import sweep_journals
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

__all__ = ["Folder", "bring_files", "candidates", "known_manifest", "restore"]

log = logging.getLogger("steelyard")


class Folder(FolderCopy):
    """A plain folder that files are restored into, as they are named in the repo."""

    kind: CopyKind = "mount"

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.root = root
        self.ours = root / OURS

    def ready(self, *, write: bool) -> None:
        make_folder(self.root)
        if write:
            probe_write(self.root)

    def path_of(self, manifest: Manifest, path: str) -> Path:
        return confine(self.root, path)

    def commits(self, model: str) -> list[str]:
        return []

    def manifest(self, model: str, commit: str) -> Manifest | None:
        return None

    def seal(self, manifest: Manifest) -> None:
        """Remove our own folder again where it is empty: the user asked for files, not for records."""
        sweep_journals(self.ours / "staging")
        for folder in (self.ours / "staging", self.ours / "quarantine", self.ours):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def restore(
    site: Site,
    model: str,
    *,
    source: str | None = None,
    revision: str | None = None,
    into: Path | None = None,
    force: bool = False,
    run: Run = run_here,
) -> Report:
    """Bring *model* back at *revision* (None: the locked commit) from *source* (None: every copy that has it) into the store or *into*.

    What stands there and can't be proven worse is not overwritten, unless *force*: it goes to quarantine then.
    """
    report = Report("restore")
    site.config.chosen([model])
    locked = site.locked_model(model)
    if source is not None:
        site.replica(source).ready(write=False)
    target: FolderCopy = _folder(site, into) if into else site.store
    copies = _sources(site, source)
    commit = choose_commit(model, revision, locked, copies)
    target.ready(write=True)
    with report.collecting(), site.writing("store", [model], "restore"):
        manifest, trusted = known_manifest(site, model, commit, locked, copies)
        if not into and locked is not None and locked.commit != commit and not force:
            hint = f"go back with: steelyard rollback {model}; or bring it elsewhere with --into DIR"
            raise Refused(why=f"the lock holds {model} at {locked.commit[:8]}, so {commit[:8]} is not put into the store", hint=hint)
        _bring_back(site, manifest, trusted, target, copies, locked, source, force, report, run)
        if target is site.store:
            _adopt_records(site, model, manifest, locked, report)
        elif report.ok:
            target.seal(manifest)
        site.history.event("restore", model, source or "any", "ok" if report.ok else "failed", commit=commit, into=str(target.root))
    return report.close()


def _folder(site: Site, into: Path) -> Folder:
    """:raises UsageError: where that is inside a replica: what is restored is no part of one."""
    folder = Folder(Path(into).expanduser().absolute())
    for name, replica in site.replicas.items():
        if isinstance(replica, FolderCopy) and existing_parent(folder.root).resolve().is_relative_to(replica.root.resolve()):
            raise UsageError(why=f"{into} lies inside the replica {name}", hint="restore into a folder elsewhere")
    return folder


def _sources(site: Site, source: str | None) -> dict[str, Copy]:
    """The copies that can be read now, nearest first. One that is absent is passed over with a warning; one asked for by name was checked before."""
    names = [source] if source else ["hub-cache", *site.replicas]
    found: dict[str, Copy] = {}
    for name in names:
        copy = site.copies[name]
        try:
            copy.ready(write=False)
        except SteelyardError as error:
            log.warning("%s is passed over: %s", name, error)
            continue
        found[name] = copy
    return found


def _bring_back(
    site: Site,
    manifest: Manifest,
    trusted: bool,
    target: FolderCopy,
    copies: dict[str, Copy],
    locked: LockedModel | None,
    source: str | None,
    force: bool,
    report: Report,
    run: Run,
) -> None:
    todo: list[FileEntry] = []
    for entry in manifest.files:
        finding = _judge_target(target, manifest, entry, trusted)
        if finding.ok:
            report.rows.append(_row(target, manifest, entry, "unchanged", 0, []))
        elif finding.verdict == "missing" or force or (target is site.store and trusted):
            todo.append(entry)
        else:
            hint = "move it away, restore into another folder, or let --force put it into quarantine"
            why = f"{target.where(manifest, entry.path)} is there and is not the file to be restored"
            report.rows.append(_row(target, manifest, entry, "refused", 0, [], 3))
            report.errors.append(Refused(why=why, hint=hint))
    check_room([Need(target.root, target.need_bytes(manifest, todo))])
    for batch in batches(todo):
        with report.collecting():
            done = run(bring_files, site, manifest, trusted, batch, target, list(copies), source)
            for one in done:
                failed = one.error.exit_code if one.error is not None else 0
                report.rows.append(_row(target, manifest, one.entry, one.action, one.bytes_written, one.sources, failed))
            report.errors += errors_in(done)


def _row(
    target: FolderCopy, manifest: Manifest, entry: FileEntry, action: str, written: int, used: Sequence[str], exit_code: int = 0
) -> Row:
    facts = {"action": action, "bytes_written": written, "sources": list(used), "commit": manifest.commit, "sha256": entry.sha256}
    return Row(manifest.model, entry.path, target.name, target.where(manifest, entry.path), facts, exit_code)


def _adopt_records(site: Site, model: str, manifest: Manifest, locked: LockedModel | None, report: Report) -> None:
    """After a restore into the store: its manifest, and the lock where it was lost, are written from what was proven."""
    if not report.ok:
        return
    site.store.seal(manifest)
    sweep_journals(site.store.ours / "staging")
    if locked is None:
        log.warning("%s: there was no lock; it is written from the replica's manifest", model)
        files = tuple(
            LockedFile(e.path, e.size_bytes, sha256=e.sha256) if e.etag == e.sha256 else LockedFile(e.path, e.size_bytes, git_sha1=e.etag)
            for e in manifest.files
        )
        site.agree(model, LockedModel(manifest.repo_id, manifest.revision, manifest.commit, files))
    for entry in manifest.files:
        path = site.store.path_of(manifest, entry.path)
        proof = Finding("ok", proof="restored, read back", bytes_read=entry.size_bytes, stat=stat_of(path.stat()))
        site.history.record("store", model, manifest.commit, entry.path, proof)
    site.write_model_info()
    restore_papers(site, model, manifest.commit)


# --- candidates and the step


def candidates(site: Site, manifest: Manifest, entry: FileEntry, names: Sequence[str], *, hub: bool) -> dict[str, ByteSource]:
    """The bytes of one file in every copy that has something under its name, nearest first; the Hub last, asked only when it is read."""
    found: dict[str, ByteSource] = {}
    for name in names:
        try:
            found[name] = site.copies[name].open(manifest, entry)
        except SteelyardError as error:
            log.debug("%s has no %s: %s", name, entry.path, error)
    if hub:
        locked = LockedModel(manifest.repo_id, manifest.revision, manifest.commit, ())
        file = LockedFile(entry.path, entry.size_bytes, sha256=entry.sha256) if entry.etag == entry.sha256 else None
        file = file or LockedFile(entry.path, entry.size_bytes, git_sha1=entry.etag)
        found["hub"] = HubFile(_lines(site, locked), file, patience_s=site.config.hub.patience)
    return found


def _lines(site: Site, locked: LockedModel) -> Callable[[], list[Line]]:
    return lambda: site.lines(locked)


def _on_separate_disks(site: Site, names: Sequence[str], sources: Mapping[str, ByteSource]) -> tuple[str, ...]:
    """Copies that can be read at once without being in each other's way."""
    found: dict[str, str] = {}
    for name in names:
        if name in sources:
            with contextlib.suppress(SteelyardError):
                found.setdefault(site.copies[name].failure_domain(), name)
    return tuple(found.values())


def _judge_target(target: FolderCopy, manifest: Manifest, entry: FileEntry, trusted: bool) -> Finding:
    """What stands where a file will be restored. Pieces on a replica's word alone prove nothing: the whole SHA-256 is taken then."""
    finding = target.judge(manifest, entry, Look())
    if finding.ok and not trusted:
        with target.open(manifest, entry) as source:
            if digest_source(source, stop=current_watch().stop).sha256 != entry.sha256:
                return Finding("corrupt", ((0, entry.size_bytes),), "sha256", "it is not the SHA-256 that was agreed on")
    return finding


@dataclass(frozen=True)
class Back:
    """What became of one file: *error* is set where it did not come back; what stood under its name still does then."""

    entry: FileEntry
    action: str
    bytes_written: int = 0
    sources: tuple[str, ...] = ()
    error: SteelyardError | None = None


def bring_files(
    site: Site,
    manifest: Manifest,
    trusted: bool,
    entries: Sequence[FileEntry],
    target: FolderCopy,
    names: Sequence[str],
    source: str | None,
) -> list[Back]:
    """Bring files into *target*. A file that is good in none of the copies, or whose source is away, does not stop the others.

    :raises Refused: when the target takes no more. :raises Unreachable: when nothing came back for that reason: worth another try.
    """
    done: list[Back] = []
    away: Unreachable | None = None
    for entry in entries:
        sources = candidates(site, manifest, entry, names, hub=source is None and away is None)
        if target is site.store:
            # The old file's good pieces are the nearest of all.
            sources = candidates(site, manifest, entry, ["store"], hub=False) | sources
        reader = ProvenReader(entry, sources, pieces_are_trusted=trusted, together=_on_separate_disks(site, names, sources))
        try:
            brought = target.bring(manifest, entry, reader)
        except (Rotten, NotWhole, OtherSide) as problem:
            error = _why_not(entry, problem, source) if isinstance(problem, Rotten) else problem
            if isinstance(error, Unreachable):
                away = error  # it was waited for once; the files after this one do without the Hub
            elif away is not None and isinstance(problem, Rotten):
                error = away
            log.error("%s · %s did not come back: %s", manifest.model, entry.path, error.message)
            done.append(Back(entry, "refused", error=error))
            continue
        finally:
            reader.close()
        used = sorted(reader.used_bytes, key=lambda name: -reader.used_bytes[name])
        log.info("%s · %s: %s from %s", manifest.model, entry.path, brought.action, ", ".join(used) or "nothing")
        done.append(Back(entry, brought.action, brought.bytes_written, tuple(used)))
    if away is not None and all(isinstance(one.error, Unreachable) for one in done):
        raise away
    return done


def _why_not(entry: FileEntry, rotten: Rotten, source: str | None) -> SteelyardError:
    """A copy that can't be asked now may have what the others lack: then that is what is in the way."""
    for kind in (Archived, OtherSide):
        if (error := next((one for one in rotten.errors if isinstance(one, kind)), None)) is not None:
            return error
    start, end = rotten.where
    why = f"bytes {start:,} to {end:,} are good in none of {', '.join(rotten.tried) or 'the copies'}"
    hint = "leave --from away, so that every copy is asked" if source else "run: steelyard verify --copy all"
    return Corrupt(path=entry.path, why=why, ranges=(rotten.where,), hint=hint)


def errors_in(done: Sequence[Back]) -> list[SteelyardError]:
    """What is to be told of files that did not come back: each by itself, those that wait in an archive together, the same reason once."""
    found: list[SteelyardError] = []
    for one in done:
        if one.error is not None and not isinstance(one.error, Archived) and one.error not in found:
            found.append(one.error)
    asleep = [one.error for one in done if isinstance(one.error, Archived)]
    return [*found, *([together(asleep)] if asleep else [])]


def together(asleep: Sequence[Archived]) -> Archived:
    """One error for files that were asked back out of an archive: the one that is ready last."""
    last = max(asleep, key=lambda error: error.ready_at)
    if len(asleep) == 1:
        return last
    return Archived(**{**last.facts, "what": f"{last.facts['what']}, as {len(asleep) - 1} other files do"}, hint=last.hint)
