"""A replica in a bucket of any S3-compatible store: <prefix>/<model>/<commit>/<files as in the repo>, with its records beside them.

A file there is proven by one HEAD where the store keeps full-object checksums; what it rests on stands in the finding's proof.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from steelyard.config import S3Config
from steelyard.copies.base import Brought, CopyKind, Finding, Look, ProvenReader, Rotten
from steelyard.copies.s3_abilities import Abilities, find_out, remember, remembered
from steelyard.copies.s3_bucket import versioning_of
from steelyard.copies.s3_client import PATIENCE_S, Bucket
from steelyard.copies.s3_look import Looker
from steelyard.copies.s3_memory import SWEEP_FROM_FILES
from steelyard.copies.s3_objects import Layout, Seen, head, listing
from steelyard.copies.s3_parts import MIN_PART_BYTES, CopyFrom, part_size, parts_of
from steelyard.copies.s3_plan import plan_shape
from steelyard.copies.s3_proof import by_head
from steelyard.copies.s3_quarantine import keep_ranges, set_aside
from steelyard.copies.s3_records import list_sealed, read_manifest, write_records
from steelyard.copies.s3_reuse import COPY_AT_LEAST, COPY_WHOLE_BYTES, Older, copy_whole, same_content, same_parts
from steelyard.copies.s3_source import S3Source
from steelyard.copies.s3_upload import Sender, Sent
from steelyard.copies.s3_uploads import Uploads
from steelyard.errors import Corrupt, Missing
from steelyard.manifest import FileEntry, Manifest
from steelyard.money import Shape
from steelyard.names import OURS
from steelyard.pieces import in_threads
from steelyard.records import is_record, record_names
from steelyard.watch import current_watch

READY_PATIENCE_S = 5.0  # ready() tells soon that a store is away; work under way is more patient


class S3Replica:
    """Keeps whole snapshots in a bucket. *ours*: a local folder for what we remember; lost, it costs requests and never safety.

    Safe from several threads. Credentials come from boto3's own chain and never stand in a message.
    """

    kind: CopyKind = "s3"

    def __init__(self, name: str, settings: S3Config, ours: Path, *, patience_s: float = PATIENCE_S) -> None:
        self.name = name
        self.settings = settings
        self.ours = ours
        self.bucket = Bucket(name, settings, patience_s=patience_s)
        self.layout = Layout(settings.bucket, settings.prefix.strip("/"))
        self.uploads = Uploads(self.bucket, self.layout, ours)
        self.looker = Looker(self.bucket, self.layout, settings, ours)
        self.memory = self.looker.memory
        self.orphans_aborted = 0
        self._wrote: set[str] = set()
        self._abilities: Abilities | None = None
        self._listings = self.looker.listings
        self._older = Older(self.commits, self.manifest)

    def __repr__(self) -> str:
        return f"S3Replica({self.bucket.who})"

    # --- the place

    def ready(self, *, write: bool) -> None:
        """:raises Gone, AccessDenied, Unreachable, Refused: each with the next step. With *write* an unknown store is asked what it can do."""
        self.bucket.call("list_objects_v2", patience_s=READY_PATIENCE_S, Prefix=self.layout.ours(""), MaxKeys=1)
        if write:
            self.abilities()

    def abilities(self) -> Abilities:
        """What the store can do; found out at the first need, then remembered on disk for a month."""
        if self._abilities is None:
            path = self.ours / f"abilities-{self.bucket.identity}.json"
            self._abilities = remembered(path)
            if self._abilities is None:
                self._abilities = find_out(self.bucket, self.layout)
                remember(path, self._abilities)
        return self._abilities

    def failure_domain(self) -> str:
        return f"s3 {self.bucket.endpoint or 'aws'}/{self.settings.bucket}"

    def where(self, manifest: Manifest, path: str) -> str:
        return self.layout.url(self.layout.key(manifest, path))

    def open(self, manifest: Manifest, entry: FileEntry) -> S3Source:
        """Its bytes as they are now; a later change is an error and not a mix. :raises Missing, OtherSide:"""
        key = self.layout.key(manifest, entry.path)
        seen = head(self.bucket, key)
        if seen is None:
            raise Missing(path=self.layout.url(key))
        asleep = (lambda: self.looker.archive.ask_back(seen)) if seen.in_archive else None
        return S3Source(self.bucket, seen, entry, asleep=asleep)

    # --- judge

    def foresee(self, model: str, commit: str, files: int) -> None:
        """A snapshot of so many *files* will be looked at soon: its listing can come while other things are read."""
        if files >= SWEEP_FROM_FILES:
            self._listings.foresee(model, commit)

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        """As in base.Copy; see Looker.judge."""
        return self.looker.judge(manifest, entry, look, recorded)

    def snapshot_listing(self, manifest: Manifest) -> dict[str, int]:
        """Path -> size of every object of a snapshot, records and strays too, as the store has them now: one request a thousand files."""
        return {path: size for path, (size, _) in self._listings.of(manifest, fresh=True).items()}

    def stats(self, manifest: Manifest, entries: Sequence[FileEntry]) -> dict[str, str]:
        """Size and ETag of each of *entries* and of the records, by path; empty when one is not there, or the files are too few for a listing."""
        if len(manifest.files) < SWEEP_FROM_FILES:
            return {}
        there = self._listings.of(manifest)
        found = {entry.path: f"{entry.size_bytes}:{there.get(entry.path, (0, ''))[1]}:" for entry in entries}
        if any(there.get(entry.path, (-1, ""))[0] != entry.size_bytes for entry in entries):
            return {}
        names = record_names(manifest).values()
        return found | {f"/{name}": there[name][1] for name in names} if all(name in there for name in names) else {}

    # --- bring

    def plan_shape(self, manifest: Manifest, todo: Sequence[FileEntry]) -> Shape:
        """Requests and bytes that bringing *todo* will take; nothing is written."""
        return plan_shape(manifest, todo, self._older, self.settings.part_size)

    def stored_bytes(self) -> int:
        """What lies below the prefix now, records and quarantine too; older versions of a bucket that keeps them are not seen."""
        return sum(size for _, size, _ in listing(self.bucket, self.layout.ours("").removesuffix(f"{OURS}/")))

    def goes_with_others(self, entry: FileEntry) -> bool:
        """Whether a file is one request, so that several are well brought at once."""
        return entry.size_bytes <= part_size(entry, self.settings.part_size)

    def bring_many(self, manifest: Manifest, readers: Sequence[ProvenReader]) -> list[Brought | Rotten]:
        """bring() for files of one part, several at once; memory is one part a connection. A rotten one does not stop the others.

        :raises Stopped: within one request of each connection; what was brought before is there and known to the next run.
        """
        self.abilities()
        became: dict[str, Brought | Rotten] = {}
        lock = threading.Lock()

        def one(reader: ProvenReader) -> None:
            try:
                found: Brought | Rotten = self.bring(manifest, reader.entry, reader)
            except Rotten as rotten:
                found = rotten
            with lock:
                became[reader.entry.path] = found

        in_threads(one, readers, threads=max(1, min(self.settings.connections, len(readers))), stop=current_watch().stop)
        return [became[reader.entry.path] for reader in readers]

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        """As in base.Copy; *bytes_written* counts what went over the wire: nothing for what the store copied itself.

        :raises Refused: when another program writes the same key meanwhile; its object stays.
        """
        if self._is_known(manifest, entry):
            return Brought("unchanged", 0)
        self.bucket.check_hours()
        key = self.layout.key(manifest, entry.path)
        over = None if self._is_free(manifest, entry) else head(self.bucket, key)
        if over is not None:
            says = by_head(entry, over, self.memory.of(manifest, entry))
            if says.right or (says.right is None and self.looker.read(manifest, entry, over).ok):
                self._keep(manifest, entry, Sent(over, 0, False, says.proof))
                self.uploads.clear(key)
                return Brought("unchanged", 0)
            set_aside(self.bucket, self.layout, over, f"replaced by {entry.sha256}")
        sent = self._send(manifest, entry, reader, key, over)
        self._wrote.add(manifest.commit)
        self._keep(manifest, entry, sent)
        how = "copied by the store" if entry.size_bytes and not sent.bytes_sent and not sent.resumed else ""
        return Brought("resumed" if sent.resumed else "copied", sent.bytes_sent, how)

    def _is_known(self, manifest: Manifest, entry: FileEntry) -> bool:
        """Whether a listing shows just what we remember to have proven: a backup with nothing to do asks no HEAD a file."""
        known = self.memory.of(manifest, entry)
        if known is None or len(manifest.files) < SWEEP_FROM_FILES:
            return False
        return self._listings.of(manifest).get(entry.path) == (known.size_bytes, known.etag)

    def _is_free(self, manifest: Manifest, entry: FileEntry) -> bool:
        """Whether a listing shows that nothing has the file's name. Should that have changed since, the store refuses to overwrite it."""
        can = self.abilities()
        if len(manifest.files) < SWEEP_FROM_FILES or not can.conditions or not (can.complete_conditions or self.goes_with_others(entry)):
            return False
        return entry.path not in self._listings.of(manifest)

    def _keep(self, manifest: Manifest, entry: FileEntry, sent: Sent) -> None:
        self.memory.keep(manifest, entry, sent.seen, sent.proof)
        self._listings.put(manifest, entry.path, sent.seen)

    def _send(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader, key: str, over: Seen | None) -> Sent:
        sender = self._sender()
        if not reader.pieces_are_trusted:
            sender.prove_whole(entry, reader)
        part_bytes = part_size(entry, self.settings.part_size)
        older = self._older.than(manifest) if entry.size_bytes >= COPY_AT_LEAST else ()
        for held, one in same_content(entry, older):
            source = self._proven(held, one)
            if source is None:
                continue
            if entry.size_bytes > COPY_WHOLE_BYTES:
                part_bytes = part_size(entry, COPY_WHOLE_BYTES)
                copies = {part.number: CopyFrom(source, part.start) for part in parts_of(entry, part_bytes)}
                return sender.in_parts(key, entry, reader, over, part_bytes, copies)
            if copy_whole(self.bucket, source, key, over, self.abilities().conditions, sender.settings_for(None)):
                seen = head(self.bucket, key)
                says = by_head(entry, seen, None) if seen is not None else None
                if seen is not None and says is not None and says.right:
                    return Sent(seen, 0, False, says.proof)
                over = seen  # the store's copy can't be proven: send it
        if entry.size_bytes <= part_bytes:
            return sender.whole(key, entry, reader, over)
        return sender.in_parts(key, entry, reader, over, part_bytes, same_parts(entry, part_bytes, older, self._proven))

    def _sender(self) -> Sender:
        return Sender(self.bucket, self.uploads, self.abilities(), self.settings)

    def _proven(self, manifest: Manifest, entry: FileEntry) -> Seen | None:
        """What the store has of an older snapshot's file, when its checksum says that it is right."""
        seen = head(self.bucket, self.layout.key(manifest, entry.path))
        if seen is None or seen.in_archive or not by_head(entry, seen, self.memory.of(manifest, entry)).right:
            return None
        return seen

    # --- mend

    def mend(self, manifest: Manifest, entry: FileEntry, finding: Finding, reader: ProvenReader) -> int:
        """As in base.Copy: the good parts are copied inside the store, the bad ones sent, the whole is checked, and what was bad is read back.

        A file of one part is sent whole. The bad bytes are kept below *ours*/quarantine.
        """
        key = self.layout.key(manifest, entry.path)
        over = head(self.bucket, key)
        if finding.verdict == "missing" or over is None:
            return self.bring(manifest, entry, reader).bytes_written
        bad = finding.bad_ranges or ((0, max(entry.size_bytes, over.size_bytes)),)
        why = f"{finding.verdict}: {finding.why or 'digest differs'}"
        keep_ranges(self.bucket, self.layout, self.ours / "quarantine", over, bad, why)
        sender = self._sender()
        if not reader.pieces_are_trusted:
            sender.prove_whole(entry, reader)
        part_bytes = part_size(entry, MIN_PART_BYTES)
        if entry.size_bytes <= part_bytes:
            sent = sender.whole(key, entry, reader, over)
        else:
            good = {
                part.number: CopyFrom(over, part.start)
                for part in parts_of(entry, part_bytes)
                if part.end <= over.size_bytes and not any(part.start < end and start < part.end for start, end in bad)
            }
            sent = sender.in_parts(key, entry, reader, over, part_bytes, good)
        self._keep(manifest, entry, sent)
        # The store's word was not good enough to find this, so it is not good enough to end it.
        found = self.looker.read(manifest, entry, sent.seen)
        if not found.ok:
            why = f"{self.name} does not give back what was written"
            raise Corrupt(path=self.layout.url(key), why=why, ranges=found.bad_ranges)
        return sent.bytes_sent

    # --- the records

    def commits(self, model: str) -> list[str]:
        return [commit for commit, _ in self.sealed(model)]

    def sealed(self, model: str) -> list[tuple[str, int]]:
        """Commits, and when each was sealed [ns since 1970], oldest first."""
        return list_sealed(self.bucket, self.layout, model)

    def forget(self, model: str) -> None:
        """What was read of its snapshots: some are not there any more."""
        self._older.forget(model)

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps what is overwritten or deleted; where we may not ask, it is taken for one that does not."""
        return versioning_of(self.bucket) in {"on", "suspended"}

    def manifest(self, model: str, commit: str) -> Manifest | None:
        return read_manifest(self.bucket, self.layout, model, commit)

    def seal(self, manifest: Manifest) -> None:
        """As in base.Copy; first a listing shows that every file is there. Old orphans of ours are aborted and counted in *orphans_aborted*.

        :raises Missing: when a file is not there or has another size; no record is written then.
        """
        # Where this run wrote nothing, the listing by which it found that out is young enough.
        there = {path: size for path, (size, _) in self._listings.of(manifest, fresh=manifest.commit in self._wrote).items()}
        for entry in manifest.files:
            if there.get(entry.path) != entry.size_bytes:
                raise Missing(path=self.where(manifest, entry.path), hint=f"run: steelyard backup --to {self.name}")
        write_records(self._sender(), self.layout, manifest)
        self._older.forget(manifest.model)
        self.orphans_aborted += self.uploads.sweep(self.settings.orphan_age)

    def strays(self, manifest: Manifest) -> list[str]:
        known = {entry.path for entry in manifest.files}
        return sorted(path for path in self.snapshot_listing(manifest) if path and path not in known and not is_record(path))

    def abort_orphans(self, older_than_s: float | None = None) -> int:
        """Abort open uploads of ours begun longer ago than *older_than_s* and return how many; others' are left."""
        return self.uploads.sweep(self.settings.orphan_age if older_than_s is None else older_than_s)
