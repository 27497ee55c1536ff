"""What work on a bucket comes to: requests by kind, bytes each way, and with a price table of one's own what that costs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from steelyard.units import Part

FREE = frozenset({"delete_object", "abort_multipart_upload"})
READS = frozenset(
    {"head_object", "get_object", "head_bucket", "get_bucket_versioning", "get_object_lock_configuration", "get_object_retention"}
)
"""Stores count these cheaper; every other request (PUT, COPY, POST, LIST) is of the dearer kind."""
SHORT = {
    "put_object": "put",
    "upload_part": "part",
    "upload_part_copy": "part-copy",
    "copy_object": "copy",
    "create_multipart_upload": "begin",
    "complete_multipart_upload": "complete",
    "abort_multipart_upload": "abort",
    "list_objects_v2": "list",
    "list_parts": "list",
    "list_multipart_uploads": "list",
    "head_object": "head",
    "get_object": "get",
    "delete_object": "delete",
    "restore_object": "restore",
}
"""Operations as the report names them."""
MONTH_DAYS = 30.4

Money = Annotated[float, Field(ge=0)]


class Prices(Part):
    """A price table, written by the user: none is built in, for they differ by store, region and month. In *currency*, without tax."""

    currency: str = "USD"
    gb_month: Money = 0.0
    """Storage, for each GB (1000³ bytes) and month."""
    writes_1000: Money = 0.0
    """A thousand PUT, COPY, POST or LIST requests."""
    reads_1000: Money = 0.0
    """A thousand GET or HEAD requests."""
    egress_gb: Money = 0.0
    """Each GB (1000³ bytes) that is read back."""


@dataclass
class Shape:
    """Requests by operation, and bytes each way. Shapes add up."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Shape) -> Shape:
        return Shape(self.requests + other.requests, self.bytes_up + other.bytes_up, self.bytes_down + other.bytes_down)

    def __sub__(self, other: Shape) -> Shape:
        return Shape(self.requests - other.requests, self.bytes_up - other.bytes_up, self.bytes_down - other.bytes_down)

    def by_kind(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for operation, count in self.requests.items():
            found[SHORT.get(operation, "other")] += count
        return dict(sorted(found.items()))

    def cost(self, prices: Prices) -> float:
        reads = sum(count for name, count in self.requests.items() if name in READS)
        writes = sum(self.requests.values()) - reads - sum(self.requests[name] for name in FREE)
        return writes / 1000 * prices.writes_1000 + reads / 1000 * prices.reads_1000 + self.bytes_down / 1000**3 * prices.egress_gb

    def as_json(self, prices: Prices | None = None) -> dict[str, Any]:
        told: dict[str, Any] = {"requests": self.by_kind(), "bytes_up": self.bytes_up, "bytes_down": self.bytes_down}
        if prices is not None:
            told["cost"] = {"amount": round(self.cost(prices), 6), "currency": prices.currency}
        return told


def upload_shape(sizes: Mapping[str, int], part_bytes: Mapping[str, int], *, listed: bool) -> Shape:
    """What sending files takes at most: one PUT up to a part, else begin, parts, complete and the two records of the open upload.

    *sizes* and *part_bytes* by path; *listed*: the snapshot is looked at by listings and not by a HEAD for each file.
    """
    shape = Shape()
    for path, size in sizes.items():
        parts = -(-size // part_bytes[path])
        shape.bytes_up += size
        if not listed or parts > 1:
            shape.requests["head_object"] += 1
        if parts <= 1:
            shape.requests["put_object"] += 1
        else:
            shape.requests.update(
                create_multipart_upload=1,
                upload_part=parts,
                complete_multipart_upload=1,
                list_objects_v2=1,
                list_multipart_uploads=1,
                put_object=1,
                delete_object=1,
                head_object=1,
            )
    return shape


def monthly(prices: Prices, stored_bytes: int, read_back_bytes: int) -> dict[str, Any]:
    """What a month costs: what lies there, and what is read back of it for proof. Requests of the rounds are beside that and small."""
    storage = stored_bytes / 1000**3 * prices.gb_month
    proof = read_back_bytes / 1000**3 * prices.egress_gb
    return {
        "stored_bytes": stored_bytes,
        "storage": round(storage, 4),
        "proof": round(proof, 4),
        "amount": round(storage + proof, 4),
        "currency": prices.currency,
    }
