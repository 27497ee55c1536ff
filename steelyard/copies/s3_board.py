"""Notes of a fleet's machines in a bucket: <prefix>/_fleet/<host>.json. Needs PutObject, GetObject and ListBucket, no more than a replica."""

from __future__ import annotations

from dataclasses import dataclass

from steelyard.boards import FOLDER, MOST_BYTES, MOST_NOTES, hosts_in
from steelyard.copies.base import Copy
from steelyard.copies.s3_client import Bucket
from steelyard.copies.s3_objects import get, head, listing
from steelyard.errors import BadRecord


@dataclass(frozen=True)
class BucketBoard:
    bucket: Bucket
    prefix: str

    @classmethod
    def of(cls, copy: Copy) -> BucketBoard:
        from steelyard.copies.s3 import S3Replica

        assert isinstance(copy, S3Replica)
        prefix = copy.layout.prefix
        return cls(copy.bucket, f"{prefix}/{FOLDER}/" if prefix else f"{FOLDER}/")

    def put(self, host: str, data: bytes) -> None:
        # Its own host alone writes it, and the latest is the right one: no condition.
        self.bucket.call("put_object", Key=self._key(host), Body=data, ContentType="application/json")

    def get(self, host: str) -> bytes | None:
        seen = head(self.bucket, self._key(host))
        if seen is not None and seen.size_bytes > MOST_BYTES:
            raise BadRecord(path=f"s3://{self.bucket.name}/{seen.key}", why="it is too long")
        return get(self.bucket, self._key(host)) if seen is not None else None

    def hosts(self) -> list[str]:
        names: list[str] = []
        for key, _, _ in listing(self.bucket, self.prefix):
            names.append(key.removeprefix(self.prefix))
            if len(names) >= MOST_NOTES:
                break
        return sorted(hosts_in(names))

    def _key(self, host: str) -> str:
        return f"{self.prefix}{host}.json"
