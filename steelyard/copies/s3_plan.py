"""What bringing files into a bucket will take, before the first byte is sent: requests by kind and bytes. The store is asked for nothing but records."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.copies.s3_memory import SWEEP_FROM_FILES
from steelyard.copies.s3_objects import Seen
from steelyard.copies.s3_parts import part_size, parts_of
from steelyard.copies.s3_reuse import COPY_AT_LEAST, COPY_WHOLE_BYTES, Older, same_content, same_parts
from steelyard.manifest import FileEntry, Manifest
from steelyard.money import Shape

_AROUND = {
    "head_object": 2,
    "create_multipart_upload": 1,
    "complete_multipart_upload": 1,
    "list_multipart_uploads": 1,
    "list_objects_v2": 1,
    "put_object": 1,
    "delete_object": 1,
}
"""Beside the parts of a multipart upload: the look before and after, and the record of the open upload."""
_SEAL = {"head_object": 3, "put_object": 3, "list_objects_v2": 2}


def plan_shape(manifest: Manifest, todo: Sequence[FileEntry], older: Older, wanted_part_bytes: int) -> Shape:
    """What bringing *todo* of *manifest* and sealing it takes, where all goes well. Older snapshots are believed to be what their manifests say."""
    shape = Shape()
    if not todo:
        return shape
    shape.requests.update(_SEAL)
    shape.requests["list_objects_v2"] += len(manifest.files) // 1000
    listed = len(manifest.files) >= SWEEP_FROM_FILES
    for entry in todo:
        held = older.than(manifest) if entry.size_bytes >= COPY_AT_LEAST else ()
        _add(shape, entry, held, part_size(entry, wanted_part_bytes), listed)
    return shape


def _add(shape: Shape, entry: FileEntry, held: Sequence[Manifest], part_bytes: int, listed: bool) -> None:
    if next(same_content(entry, held), None) is not None:
        if entry.size_bytes <= COPY_WHOLE_BYTES:
            shape.requests.update(head_object=3, copy_object=1)
        else:
            shape.requests.update(_AROUND)
            shape.requests.update(head_object=1, upload_part_copy=len(parts_of(entry, part_size(entry, COPY_WHOLE_BYTES))))
        return
    if entry.size_bytes <= part_bytes:
        shape.requests.update(put_object=1, head_object=0 if listed else 1)
        shape.bytes_up += entry.size_bytes
        return
    there = same_parts(entry, part_bytes, held, lambda _, one: Seen(one.path, one.size_bytes, ""))
    sent = [part for part in parts_of(entry, part_bytes) if part.number not in there]
    shape.requests.update(_AROUND)
    shape.requests.update(upload_part=len(sent), upload_part_copy=len(there), head_object=1 if there else 0)
    shape.bytes_up += sum(part.end - part.start for part in sent)
