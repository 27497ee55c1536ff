"""Looking at the objects of a replica in a bucket: a verdict on one file, and the share of all of them that is due to be read back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from steelyard.config import S3Config
from steelyard.copies.base import Finding, Look
from steelyard.copies.s3_archive import Archive
from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_memory import Listings, Memory
from steelyard.copies.s3_objects import Layout, Seen, head
from steelyard.copies.s3_proof import HeadSays, by_head, by_ranges, by_stat
from steelyard.copies.s3_rolling import Allowance, Rounds, Share, allow, choose
from steelyard.manifest import FileEntry, Manifest
from steelyard.names import slug
from steelyard.watch import current_watch


class Looker:
    """The looks at one replica. What it proves is kept in *memory* and *rounds*, records of this machine."""

    def __init__(self, bucket: Bucket, layout: Layout, settings: S3Config, ours: Path) -> None:
        self.bucket = bucket
        self.layout = layout
        self.settings = settings
        self.listings = Listings(bucket, layout)
        identity = f"{bucket.identity}-{slug(layout.prefix)}"
        self.memory = Memory(ours, identity)
        self.rounds = Rounds(ours, identity)
        self.archive = Archive(bucket, ours)

    def judge(self, manifest: Manifest, entry: FileEntry, look: Look, recorded: Finding | None = None) -> Finding:
        """Default: one HEAD, no bytes, as long as the store's checksum tells that it is right; what is wrong is then read to say where.

        Quick rests on size and ETag and is never better than *recorded*. Deep reads every byte back, but for what lies in an archive: that is judged by
        HEAD, or asked back where *look* says so.
        """
        if look.depth == "quick":
            return by_stat(entry, self.listings.stat(manifest, entry), recorded)
        seen = head(self.bucket, self.layout.key(manifest, entry.path))
        if seen is None:
            return Finding("missing", proof="HEAD")
        says = by_head(entry, seen, self.memory.of(manifest, entry))
        if seen.in_archive:
            return self._of_archived(entry, seen, says, wake=look.wake and look.depth == "deep" and says.right is not False)
        if look.depth == "default" and says.right:
            self.memory.keep(manifest, entry, seen, says.proof)
            return Finding("ok", proof=says.proof, stat=seen.stat)
        return self.read(manifest, entry, seen)

    def read(self, manifest: Manifest, entry: FileEntry, seen: Seen, pieces: Sequence[int] | None = None) -> Finding:
        """Read all of it back, or just *pieces*, and note what proved right."""
        found = by_ranges(self.bucket, seen, entry, self.settings.connections, pieces)
        if found.ok:
            self.rounds.note(manifest, entry, seen.etag, range(len(entry.pieces)) if pieces is None else pieces)
            if pieces is None:
                self.memory.keep(manifest, entry, seen, found.proof)
        return found

    def _of_archived(self, entry: FileEntry, seen: Seen, says: HeadSays, *, wake: bool) -> Finding:
        kind = seen.archive_status or seen.storage_class
        if says.right is False:
            return Finding("corrupt", ((0, max(entry.size_bytes, seen.size_bytes)),), says.proof, says.why, stat=seen.stat)
        if wake:
            asked = self.archive.ask_back(seen)
            return Finding("unverified", proof=says.proof, why=asked.message, stat=seen.stat, waits=True)
        if says.right:
            return Finding("ok", proof=says.proof, why=f"its bytes lie in {kind} and were not read", stat=seen.stat)
        return Finding("unverified", proof=says.proof, why=f"its bytes lie in {kind} and must be asked back first", stat=seen.stat)

    # --- a share at a time

    @property
    def rolls(self) -> bool:
        """Whether the config asks for a share at a time."""
        return self.settings.proof_days is not None or self.settings.egress_per_day is not None

    def due(self, manifests: Sequence[Manifest]) -> tuple[Allowance, list[tuple[tuple[Manifest, FileEntry], list[float]]]]:
        """How much may be read now, and when each piece of each file was read last. One listing a snapshot."""
        held = []
        for manifest in manifests:
            there = self.listings.of(manifest, fresh=True)
            for entry in manifest.files:
                times = self.rounds.times(manifest, entry, there.get(entry.path, (0, ""))[1])
                held.append(((manifest, entry), times))
        pairs = [(entry, times) for (_, entry), times in held]
        return allow(pairs, self.settings.proof_days, self.settings.egress_per_day, time.time()), held

    def roll(self, manifests: Sequence[Manifest], most_bytes: int | None) -> tuple[Allowance, list[tuple[Share, Finding]]]:
        """Read back the share of *manifests* that is due, at most *most_bytes*, longest unread first; each file's HEAD is looked at too.

        A stop, a kill or an error costs the files under way: what was read is noted file by file.
        """
        allowance, held = self.due(manifests)
        left = allowance.now_bytes if most_bytes is None else min(allowance.now_bytes, most_bytes)
        done: list[tuple[Share, Finding]] = []
        while left > 0 and held:
            shares = choose(held, left)
            for share in shares:
                current_watch().check()
                finding = self._look_at(share)
                done.append((share, finding))
                left -= finding.bytes_read
            # What could not be read (missing, in an archive) leaves its share to the next in line.
            tried = {id(share.entry) for share in shares}
            held = [one for one in held if id(one[0][1]) not in tried]
            if any(finding.bytes_read for _, finding in done):
                break
        return allowance, done

    def _look_at(self, share: Share) -> Finding:
        seen = head(self.bucket, self.layout.key(share.manifest, share.entry.path))
        if seen is None:
            return Finding("missing", proof="HEAD")
        says = by_head(share.entry, seen, self.memory.of(share.manifest, share.entry))
        if seen.in_archive:
            return self._of_archived(share.entry, seen, says, wake=False)
        if says.right is False:
            return self.read(share.manifest, share.entry, seen)
        found = self.read(share.manifest, share.entry, seen, share.pieces)
        if not found.ok or len(share.pieces) == len(share.entry.pieces):
            return found
        known = says.proof if says.right else "no checksum of the store"
        proof = f"{known}; {len(share.pieces)} of {len(share.entry.pieces)} pieces by ranged reads"
        return Finding("ok" if says.right else "unverified", proof=proof, bytes_read=found.bytes_read, stat=found.stat)
