"""A replica in a bucket of any S3-compatible store: <prefix>/<model>/<commit>/<files as in the repo>, with its records beside them.

A file there is proven by one HEAD where the store keeps full-object checksums; what it rests on stands in the finding's proof.
"""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path

from steelyard.config import S3Config
from steelyard.copies.base import Brought, CopyKind, Finding, Look, ProvenReader
from steelyard.copies.s3_abilities import Abilities, find_out, remember, remembered
from steelyard.copies.s3_client import PATIENCE_S, Bucket
from steelyard.copies.s3_objects import Layout, Memory, Seen, get, head, listing
from steelyard.copies.s3_parts import MIN_PART_BYTES, CopyFrom, crc_of, part_size, parts_of
from steelyard.copies.s3_proof import by_head, by_ranges
from steelyard.copies.s3_reuse import COPY_AT_LEAST, COPY_WHOLE_BYTES, copy_whole, same_content, same_parts
from steelyard.copies.s3_source import S3Source
from steelyard.copies.s3_upload import Sender, Sent
from steelyard.copies.s3_uploads import Uploads
from steelyard.disk import errors_of, write_atomically
from steelyard.errors import BadRecord, Corrupt, Missing, OtherSide, Refused, Unreadable
from steelyard.hub import is_commit
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import slug
from steelyard.quarantine import new_case
from steelyard.records import MANIFEST, is_record, records

log = logging.getLogger(__name__)

ORPHAN_AGE_S = 7 * 86400.0
"""Open uploads of ours older than this are aborted when a snapshot is sealed."""
SWEEP_FROM_FILES = 16
"""From this many files on, a snapshot is looked at by ListObjects pages instead of a HEAD for each file."""
LISTING_S = 30.0
"""How long such a listing is good for."""
READY_PATIENCE_S = 5.0
"""ready() tells soon that a store is away; work under way is more patient."""


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
        self.memory = Memory(ours, f"{self.bucket.identity}-{slug(self.layout.prefix)}")
        self.orphans_aborted = 0
        self._abilities: Abilities | None = None
        self._listings: dict[tuple[str, str], tuple[float, dict[str, tuple[int, str]]]] = {}
        self._older: dict[str, tuple[Manifest, ...]] = {}

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
        return S3Source(self.bucket, seen, entry)

    # --- judge

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        """Default: one HEAD, no bytes, as long as the store's checksum tells that it is right; what is wrong is then read to say where.

        Quick rests on size and ETag and is never better than *recorded*. Deep reads every byte back.
        """
        if look.depth == "quick":
            return self._quick(manifest, entry, recorded)
        seen = head(self.bucket, self.layout.key(manifest, entry.path))
        if seen is None:
            return Finding("missing", proof="HEAD")
        says = by_head(entry, seen, self.memory.of(manifest, entry))
        if look.depth == "default" and says.right:
            self.memory.keep(manifest, entry, seen, says.proof)
            return Finding("ok", proof=says.proof, stat=seen.stat)
        if seen.in_archive:
            why = f"its bytes lie in {seen.storage_class} and must be asked back first"
            if says.right is False:
                return Finding("corrupt", ((0, max(entry.size_bytes, seen.size_bytes)),), says.proof, says.why, stat=seen.stat)
            return Finding("unverified", proof=says.proof, why=why, stat=seen.stat)
        found = by_ranges(self.bucket, seen, entry, self.settings.connections)
        if found.ok:
            self.memory.keep(manifest, entry, seen, found.proof)
        return found

    def _quick(self, manifest: Manifest, entry: FileEntry, recorded: Finding | None) -> Finding:
        now = self._stat(manifest, entry)
        if now is None:
            return Finding("missing", proof="presence")
        size, stat = now
        if size != entry.size_bytes:
            first = min(size, entry.size_bytes) // entry.piece_bytes * entry.piece_bytes if size < entry.size_bytes else entry.size_bytes
            why = f"it has {size} bytes, {entry.size_bytes} are right"
            return Finding("corrupt", ((first, max(size, entry.size_bytes)),), "size", why, stat=stat)
        if recorded is None or recorded.stat.rsplit(":", 1)[0] != stat.rsplit(":", 1)[0]:
            why = "never proven here" if recorded is None else "its ETag changed since it was last proven"
            return Finding("unverified", proof="size and ETag", why=why, stat=stat)
        return Finding(recorded.verdict, recorded.bad_ranges, "size and ETag", "size and ETag are as at the last proof", stat=recorded.stat)

    def _stat(self, manifest: Manifest, entry: FileEntry) -> tuple[int, str] | None:
        """(size, stat) of a file: from a listing where the snapshot has many files, else by HEAD."""
        if len(manifest.files) >= SWEEP_FROM_FILES:
            found = self._listing(manifest).get(entry.path)
            return None if found is None else (found[0], f"{found[0]}:{found[1]}:")
        seen = head(self.bucket, self.layout.key(manifest, entry.path))
        return None if seen is None else (seen.size_bytes, seen.stat)

    def snapshot_listing(self, manifest: Manifest) -> dict[str, int]:
        """Path -> size of every object of a snapshot, records and strays too, as the store has them now: one request a thousand files."""
        return {path: size for path, (size, _) in self._listing(manifest, fresh=True).items()}

    def _listing(self, manifest: Manifest, *, fresh: bool = False) -> dict[str, tuple[int, str]]:
        name = (manifest.model, manifest.commit)
        taken_at, found = self._listings.get(name, (0.0, {}))
        if fresh or not taken_at or time.monotonic() - taken_at > LISTING_S:
            folder = self.layout.folder(*name)
            taken_at = time.monotonic()
            found = {key.removeprefix(folder): (size, etag) for key, size, etag in listing(self.bucket, folder)}
            self._listings[name] = (taken_at, found)
        return found

    # --- bring

    def bring(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader) -> Brought:
        """As in base.Copy; *bytes_written* counts what went over the wire: nothing for what the store copied itself.

        :raises Refused: when another program writes the same key meanwhile; its object stays.
        """
        if self._is_known(manifest, entry):
            return Brought("unchanged", 0)
        key = self.layout.key(manifest, entry.path)
        over = head(self.bucket, key)
        if over is not None:
            says = by_head(entry, over, self.memory.of(manifest, entry))
            if says.right or (says.right is None and by_ranges(self.bucket, over, entry, self.settings.connections).ok):
                self._keep(manifest, entry, Sent(over, 0, False, says.proof))
                return Brought("unchanged", 0)
            self._set_aside(over, f"replaced by {entry.sha256}")
        sent = self._send(manifest, entry, reader, key, over)
        self._keep(manifest, entry, sent)
        return Brought("resumed" if sent.resumed else "copied", sent.bytes_sent)

    def _is_known(self, manifest: Manifest, entry: FileEntry) -> bool:
        """Whether a listing shows just what we remember to have proven: a backup with nothing to do asks no HEAD a file."""
        known = self.memory.of(manifest, entry)
        if known is None or len(manifest.files) < SWEEP_FROM_FILES:
            return False
        return self._listing(manifest).get(entry.path) == (known.size_bytes, known.etag)

    def _keep(self, manifest: Manifest, entry: FileEntry, sent: Sent) -> None:
        self.memory.keep(manifest, entry, sent.seen, sent.proof)
        _, found = self._listings.get((manifest.model, manifest.commit), (0.0, {}))
        found[entry.path] = (sent.seen.size_bytes, sent.seen.etag)

    def _send(self, manifest: Manifest, entry: FileEntry, reader: ProvenReader, key: str, over: Seen | None) -> Sent:
        sender = Sender(self.bucket, self.uploads, self.abilities(), self.settings)
        part_bytes = part_size(entry, self.settings.part_size)
        older = self._others(manifest) if entry.size_bytes >= COPY_AT_LEAST else ()
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

    def _others(self, manifest: Manifest) -> tuple[Manifest, ...]:
        """The manifests of the model's other snapshots here, newest first; read once. One that is damaged or away only costs bytes."""
        if manifest.model not in self._older:
            found = []
            for commit in reversed(self.commits(manifest.model)):
                try:
                    one = self.manifest(manifest.model, commit)
                except BadRecord:
                    continue
                if one is not None:
                    found.append(one)
            self._older[manifest.model] = tuple(found)
        return tuple(one for one in self._older[manifest.model] if one.commit != manifest.commit)

    def _proven(self, manifest: Manifest, entry: FileEntry) -> Seen | None:
        """What the store has of an older snapshot's file, when its checksum says that it is right."""
        seen = head(self.bucket, self.layout.key(manifest, entry.path))
        if seen is None or seen.in_archive or not by_head(entry, seen, self.memory.of(manifest, entry)).right:
            return None
        return seen

    def _set_aside(self, seen: Seen, why: str) -> None:
        """What stands where a proven file will go and is not the same content is evidence: kept in the bucket, below .steelyard/quarantine/."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        key = self.layout.ours(f"quarantine/{stamp}-{secrets.token_hex(3)}/{seen.key.rpartition('/')[2]}")
        if not copy_whole(self.bucket, seen, key, None, False, {}):
            raise Refused(
                why=f"{self.layout.url(seen.key)} holds other bytes and can't be set aside, so it was not replaced",
                hint="move it away by hand",
            )
        log.warning("%s held other bytes; set aside as %s (%s)", self.layout.url(seen.key), self.layout.url(key), why)

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
        self._keep_ranges(over, bad, f"{finding.verdict}: {finding.why or 'digest differs'}")
        sender = Sender(self.bucket, self.uploads, self.abilities(), self.settings)
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
        found = by_ranges(self.bucket, sent.seen, entry, self.settings.connections)
        if not found.ok:
            why = f"{self.name} does not give back what was written"
            raise Corrupt(path=self.layout.url(key), why=why, ranges=found.bad_ranges)
        return sent.bytes_sent

    def _keep_ranges(self, seen: Seen, ranges: tuple[tuple[int, int], ...], why: str) -> None:
        """Save the bad bytes below *ours*; what the store won't give is noted instead."""
        case = new_case(self.ours / "quarantine", seen.key.rpartition("/")[2])
        source, lost = S3Source(self.bucket, seen, patience_s=READY_PATIENCE_S), []
        for start, end in ranges:
            try:
                with errors_of(case), (case / f"{start}-{end}.bin").open("wb") as out:
                    for at in range(start, min(end, seen.size_bytes), 1 << 23):
                        view = memoryview(bytearray(min(1 << 23, end - at, seen.size_bytes - at)))
                        out.write(view[: source.readinto(at, view)])
            except (OtherSide, Unreadable, Missing) as error:
                lost.append(f"{start}-{end}: {error.message}")
        record = {"path": self.layout.url(seen.key), "etag": seen.etag, "when": datetime.now(UTC).isoformat(timespec="seconds"), "why": why}
        write_atomically(case / "record.json", json.dumps(record | {"ranges": list(ranges), "unreadable": lost}, indent=1).encode())

    # --- the records

    def commits(self, model: str) -> list[str]:
        """As in base.Copy; the order is that of sealing, which stands in the manifest's metadata (S3's own times are whole seconds)."""
        found = []
        for prefix, size, _ in listing(self.bucket, self.layout.models(model), delimiter="/"):
            commit = prefix.rstrip("/").rpartition("/")[2]
            if size >= 0 or not is_commit(commit):
                continue
            for name in (f"steelyard-{MANIFEST}", MANIFEST):
                seen = head(self.bucket, prefix + name)
                if seen is not None:
                    found.append((seen.sealed_ns, commit))
                    break
        return [commit for _, commit in sorted(found)]

    def manifest(self, model: str, commit: str) -> Manifest | None:
        problem: BadRecord | None = None
        # A repo may have a manifest.json of its own; ours then has the longer name, and is looked for first.
        for name in (f"steelyard-{MANIFEST}", MANIFEST):
            key = self.layout.folder(model, commit) + name
            data = get(self.bucket, key)
            if data is None:
                continue
            try:
                manifest = Manifest.parse(data, self.layout.url(key))
            except BadRecord as error:
                problem = error
            else:
                if (manifest.model, manifest.commit) == (model, commit):
                    return manifest
                problem = BadRecord(path=self.layout.url(key), why="it is of another model or commit")
        if problem is not None:
            raise problem
        return None

    def seal(self, manifest: Manifest) -> None:
        """As in base.Copy; first a listing shows that every file is there. Old orphans of ours are aborted and counted in *orphans_aborted*.

        :raises Missing: when a file is not there or has another size; no record is written then.
        """
        there = self.snapshot_listing(manifest)
        for entry in manifest.files:
            if there.get(entry.path) != entry.size_bytes:
                raise Missing(path=self.where(manifest, entry.path), hint=f"run: steelyard backup --to {self.name}")
        folder = self.layout.folder(manifest.model, manifest.commit)
        at = f" --endpoint-url {shlex.quote(self.bucket.endpoint)}" if self.bucket.endpoint else ""
        line = f"aws s3 cp --recursive {shlex.quote(self.layout.url(folder))} /where/you/want/it{at}"
        for name, data in records(manifest, line, "/where/you/want/it").items():
            self._write_record(folder + name, data)
        self._older.pop(manifest.model, None)
        self.orphans_aborted += self.uploads.sweep(ORPHAN_AGE_S)

    def _write_record(self, key: str, data: bytes) -> None:
        over = head(self.bucket, key)
        crc = crc_of(bytearray(data))
        if over is not None and (over.crc64nvme == crc or (not over.crc64nvme and get(self.bucket, key) == data)):
            return
        sender = Sender(self.bucket, self.uploads, self.abilities(), self.settings)
        sender.record(key, data, crc, over, {"steelyard-sealed-ns": str(time.time_ns())})

    def strays(self, manifest: Manifest) -> list[str]:
        known = {entry.path for entry in manifest.files}
        return sorted(path for path in self._listing(manifest, fresh=True) if path and path not in known and not is_record(path))

    def abort_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Abort open uploads of ours begun longer ago than *older_than_s* and return how many; others' are left."""
        return self.uploads.sweep(older_than_s)
