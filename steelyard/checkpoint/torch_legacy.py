"""A checkpoint from before torch 1.6: five pickles in a row, then the raw storages.

magic number · protocol 1001 · system info · the object · the list of storage keys · for each key its element count (int64) and its bytes
(torch/serialization.py, _legacy_save). Every stream is a pickle, so code may hide in any of them: all are walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from steelyard.checkpoint.inspection import StorageInfo
from steelyard.checkpoint.pickle_values import PDict
from steelyard.checkpoint.pickle_walk import MAX_OPCODES, MAX_PICKLE_BYTES, PickleWalk, Truncated, walk
from steelyard.checkpoint.reader import HEAD_BYTES, RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.tensors import storage_bytes

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAGIC_BYTES = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_STREAMS = ("magic number", "protocol", "system info", "object", "storage keys")


@dataclass(slots=True)
class LegacyFile:
    pickle: PickleWalk
    storages: dict[str, StorageInfo] = field(default_factory=dict)
    reasons: list[Reason] = field(default_factory=list)
    globals: dict[str, str] = field(default_factory=dict)


def read_torch_legacy(reader: RangeReader, allow: frozenset[str]) -> LegacyFile:
    """Walk all five streams and place the storages; a file that stops being a checkpoint half-way keeps what was found until there."""
    found = LegacyFile(PickleWalk())
    at = 0
    budget = MAX_OPCODES
    walks: list[PickleWalk] = []
    for stream in _STREAMS:
        walked = _walk_stream(reader, at, allow, stream, budget)
        walks.append(walked)
        found.globals |= walked.globals
        found.reasons += walked.reasons
        budget = max(1000, budget - walked.opcodes)
        if not walked.complete:
            return found
        at = walked.end
        problem = _unexpected(stream, walked)
        if problem:
            found.reasons.append(problem)
            return found
    found.pickle = walks[3]
    if any(storage.untyped for storage in found.pickle.storages.values()):
        # torch/serialization.py, _legacy_load: it asks the class for its dtype, which an untyped one has not (seen with 2.13).
        found.reasons.append(
            Reason(
                "no-loader", "untyped storages in the format from before 1.6, which torch's safe loader can't read: save it anew as a zip"
            )
        )
    keys = walks[4].value
    for reason in _place(reader, at, [str(key) for key in keys] if isinstance(keys, list) else [], found):
        found.reasons.append(reason)
    return found


def _unexpected(stream: str, walked: PickleWalk) -> Reason | None:
    value = walked.value
    if stream == "magic number" and value != MAGIC:
        return Reason("plain-pickle", "a pickle, but no torch checkpoint: it lacks torch's magic number")
    if stream == "protocol" and value != PROTOCOL:
        return Reason(
            "unknown-version", f"legacy protocol {shown(str(value)) if isinstance(value, int) else '?'}; {PROTOCOL} is the only one known"
        )
    if stream == "system info" and isinstance(value, PDict):
        for key, held in value.pairs:
            if key == "little_endian" and held is False:
                return Reason("big-endian", "written on a big-endian machine; torch would read its numbers wrongly")
    return None


def _walk_stream(reader: RangeReader, start: int, allow: frozenset[str], stream: str, budget: int) -> PickleWalk:
    """Walk the pickle at *start*, fetching more of the file as long as it has not ended."""
    length = min(HEAD_BYTES, reader.size_bytes - start)
    while True:
        data = reader.read(start, length)
        try:
            walked = walk(data, allow=allow, max_opcodes=budget, where=stream)
        except Truncated:
            if start + length >= reader.size_bytes:
                return PickleWalk(reasons=[Reason("cut-off", f"the file ends inside its {stream}: it was cut off")])
            if length >= MAX_PICKLE_BYTES:
                return PickleWalk(reasons=[Reason("pickle-too-big", f"its {stream} has more than {MAX_PICKLE_BYTES} bytes")])
            length = min(length * 4, MAX_PICKLE_BYTES, reader.size_bytes - start)
            continue
        walked.end += start
        return walked


def _place(reader: RangeReader, at: int, keys: list[str], found: LegacyFile) -> Iterator[Reason]:
    claimed = found.pickle.storages
    if set(keys) - set(claimed) or len(set(keys)) != len(keys):
        yield Reason("pickle-broken", "its list of storages does not match its tensors")
        return
    for key in keys:
        storage = claimed[key]
        size = storage_bytes(storage)
        if reader.is_local or reader.held(at, 8) is not None:
            count = int.from_bytes(reader.read(at, 8), "little", signed=True)
            if at + 8 <= reader.size_bytes and count != storage.numel:
                yield Reason("storage-size", f"storage {shown(key)} has {count} elements where {storage.numel} are claimed")
                return
        found.storages[key] = StorageInfo(key, size, at + 8, None)
        at += 8 + size
    if at > reader.size_bytes:
        yield Reason("cut-off", f"the file has {reader.size_bytes} bytes where its tensors need {at}")
    elif at < reader.size_bytes:
        yield Reason("trailing-bytes", f"{reader.size_bytes - at} bytes follow the last tensor")


def plain_pickle(reader: RangeReader, allow: frozenset[str]) -> LegacyFile:
    """A pickle that is no checkpoint: what it would call is told, its contents are not judged further."""
    walked = _walk_stream(reader, 0, allow, "pickle", MAX_OPCODES)
    reasons = list(walked.reasons)
    if walked.complete:
        reasons.append(Reason("plain-pickle", "a pickle, but no torch checkpoint"))
    elif not reasons:
        raise NotWeights("pickle-broken", "a pickle that breaks off")
    return LegacyFile(walked, reasons=reasons, globals=walked.globals)
