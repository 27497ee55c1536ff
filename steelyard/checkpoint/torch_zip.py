"""A torch.save zip: <root>/data.pkl describes the tensors, <root>/data/<key> holds their bytes. TorchScript has the same shape, and code."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from steelyard.checkpoint.inspection import Format, StorageInfo
from steelyard.checkpoint.pickle_walk import MAX_PICKLE_BYTES, PickleWalk, Truncated, walk
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, ReasonCode, shown
from steelyard.checkpoint.trust import TORCHSCRIPT_ALLOWANCE
from steelyard.checkpoint.zip_container import DEFLATED, STORED, Container, Entry, check_local_header, read_container

_RECORD_VALUES: dict[str, re.Pattern[str]] = {
    "version": re.compile("[1-9]|10"),
    "byteorder": re.compile("little|big"),
    ".format_version": re.compile("[0-9]{1,3}"),
    ".storage_alignment": re.compile("[1-9][0-9]{0,5}"),
    ".data/serialization_id": re.compile("[0-9a-f]*"),
}
"""The small records of an archive and what they may say (caffe2/serialize/versions.h; torch/serialization.py, _load)."""
_PACKAGED = re.compile(r"[^/]+/\.data/(extern_modules|python_version|[0-9]+\.storage)")
"""What only torch.package writes (torch/package/package_exporter.py)."""
_PLAIN_RECORDS = frozenset(_RECORD_VALUES)
_SCRIPT_PARTS = ("code/", "extra/", "constants/", "tensors/", "debug/", "traced_inputs/")
_SCRIPT_RECORDS = frozenset(
    {
        "constants.pkl",
        "model.json",
        "attributes.pkl",
        "bytecode.pkl",
        "traced_inputs.pkl",
        "mobile_debug_handles.pkl",
        "promoted_ops",
        "_extra_files",
    }
)
MAX_RECORD_BYTES = 4096
ALIGNMENT_BYTES = 64


@dataclass(slots=True)
class TorchZip:
    """What the archive holds before the tensors are described: its pickle walked, its storages placed."""

    format: Format
    pickle: PickleWalk
    storages: dict[str, StorageInfo]
    reasons: list[Reason]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_torch_zip(reader: RangeReader, allow: frozenset[str]) -> TorchZip:
    """Walk the zip and its pickle.

    :raises NotWeights: where there is nothing to go on with: no directory, no data.pkl, some other kind of zip.
    """
    container = read_container(reader)
    findings = container.findings
    root, records = _records(container)
    script = "constants.pkl" in records or any(name.startswith("code/") for name in records)
    if "data.pkl" not in records:
        raise _other_zip(container, root)
    storages = _storages(reader, records, findings_of=container, script=script)
    for name, entry in records.items():
        if not _belongs(name, script):
            code: ReasonCode = "foreign-pickle" if name.lower().endswith((".pkl", ".pickle")) else "foreign-entry"
            findings.add(code, f"{shown(entry.name)} does not belong in a checkpoint", shown(entry.name))
    if "version" not in records and ".data/version" not in records:
        findings.add("header-broken", "it has no record of its version, and torch opens none without")
    metadata = _small_records(reader, records, container)
    found = TorchZip("torchscript" if script else "torch-zip", PickleWalk(), storages, [], metadata)
    main = records["data.pkl"]
    if not main.checked:
        # The header before the data decides where it begins; both come in one request.
        reader.keep(main.header_offset, min(main.data_offset + main.packed_bytes - main.header_offset, MAX_PICKLE_BYTES))
        main = check_local_header(reader, main, container)
    found.pickle = _walk_entry(reader, main, allow, script)
    if script:
        _judge_script(reader, records, allow, found)
    if any(name.startswith(".data/") and name != ".data/serialization_id" for name in records):
        found.reasons.append(Reason("torch-package", "a torch.package archive: it carries Python sources that loading would run"))
    metadata["entries"] = len(container.entries)
    metadata["local_headers_read"] = container.local_headers_read
    if container.local_headers_read < len(container.entries):
        behind = len(container.entries) - container.local_headers_read
        found.reasons.append(
            Reason("headers-inferred", f"{behind} headers beside the tensors were not fetched; their places follow from the directory")
        )
    found.reasons = [*findings.reasons(), *found.pickle.reasons, *found.reasons]
    return found


def _records(container: Container) -> tuple[str, dict[str, Entry]]:
    """The entries by name below the archive's folder."""
    if not container.entries:
        raise NotWeights("plain-zip", "an empty zip")
    root = container.root
    records: dict[str, Entry] = {}
    others: Counter[str] = Counter()
    for entry in container.entries:
        folder, slash, name = entry.name.partition("/")
        if slash and folder == root:
            records.setdefault(name, entry)
        else:
            others[folder] += 1
            if entry.name.lower().endswith("data.pkl"):
                container.findings.add(
                    "second-directory",
                    f"a second pickle, {shown(entry.name)}, beside {shown(root)}/data.pkl: readers would differ",
                    shown(entry.name),
                )
    for folder, count in list(others.items())[:3]:
        container.findings.add("foreign-entry", f"{count} entries below {shown(folder)!r}, outside the archive's folder {shown(root)!r}")
    return root, records


def _belongs(name: str, script: bool) -> bool:
    if name == "data.pkl" or name in _PLAIN_RECORDS:
        return True
    if name.startswith(("data/", ".data/")):
        return not name.endswith((".pkl", ".pickle", ".py"))
    return script and (name in _SCRIPT_RECORDS or name.startswith(_SCRIPT_PARTS))


def _storages(reader: RangeReader, records: dict[str, Entry], *, findings_of: Container, script: bool) -> dict[str, StorageInfo]:
    storages: dict[str, StorageInfo] = {}
    no_crc = 0
    for name, entry in records.items():
        if not name.startswith("data/") or name.endswith(".pkl"):
            continue
        key = name.removeprefix("data/")
        if entry.method != STORED:
            findings_of.findings.add(
                "compressed-storage", f"{shown(entry.name)} is compressed; read by mmap it would give garbage", shown(entry.name)
            )
        elif entry.size_bytes and entry.data_offset % ALIGNMENT_BYTES:
            findings_of.findings.add(
                "unaligned-storage", f"{shown(entry.name)} does not begin on a multiple of {ALIGNMENT_BYTES}", shown(entry.name)
            )
        # torch writes 0 when it is told not to compute checksums; an empty storage has 0 too.
        no_crc += entry.crc32 == 0 and entry.size_bytes > 0
        storages[key] = StorageInfo(key, entry.size_bytes, entry.data_offset, entry.crc32 or None, entry.method != STORED, entry.name)
    if no_crc:
        findings_of.findings.add("crc-absent", f"{no_crc} storages carry no checksum")
    return storages


def _walk_entry(reader: RangeReader, entry: Entry, allow: frozenset[str], script: bool) -> PickleWalk:
    try:
        data = read_entry(reader, entry)
        found = walk(data, allow=allow, torchscript=script, where=shown(entry.name))
    except NotWeights as error:
        return PickleWalk(reasons=[error.reason])
    except Truncated:
        return PickleWalk(reasons=[Reason("pickle-broken", f"{shown(entry.name)} ends in the middle of its pickle")])
    if found.complete and found.end != len(data):
        found.reasons.append(Reason("hidden-bytes", f"{len(data) - found.end} bytes follow the pickle in {shown(entry.name)}"))
    return found


def read_entry(reader: RangeReader, entry: Entry) -> bytes:
    """The unpacked bytes of a small entry, its CRC checked.

    :raises NotWeights: "pickle-too-big", "zip-bomb", or "crc-mismatch".
    """
    name = shown(entry.name)
    if entry.size_bytes > MAX_PICKLE_BYTES or entry.packed_bytes > MAX_PICKLE_BYTES:
        raise NotWeights("pickle-too-big", f"{name} has {entry.size_bytes} bytes; more than {MAX_PICKLE_BYTES} are not looked into")
    data = reader.read(entry.data_offset, entry.packed_bytes)
    if len(data) != entry.packed_bytes:
        raise NotWeights("cut-off", f"{name} reaches past the end of the file")
    if entry.method == DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            data = unpacker.decompress(data, entry.size_bytes + 1)
        except zlib.error as error:
            raise NotWeights("header-broken", f"{name} can't be unpacked") from error
        if len(data) != entry.size_bytes:
            raise NotWeights(
                "zip-bomb" if len(data) > entry.size_bytes else "header-broken", f"{name} unpacks to another size than it claims"
            )
    if entry.crc32 and zlib.crc32(data) != entry.crc32:
        raise NotWeights("crc-mismatch", f"the checksum of {name} is not that of its bytes")
    return data


def _small_records(reader: RangeReader, records: dict[str, Entry], container: Container) -> dict[str, Any]:
    """The records of a few bytes: their checksums, and that they say what torch can read."""
    metadata: dict[str, Any] = {}
    findings = container.findings
    for name in sorted(_PLAIN_RECORDS):
        entry = records.get(name)
        if entry is None or (not reader.is_local and reader.held(entry.data_offset, entry.packed_bytes) is None):
            continue
        if entry.size_bytes > MAX_RECORD_BYTES:
            findings.add("foreign-entry", f"{shown(entry.name)} has {entry.size_bytes} bytes, which is no such record", shown(entry.name))
            continue
        try:
            told = shown(read_entry(reader, entry).decode("ascii", "replace").strip())
        except NotWeights as error:
            findings.add(error.reason.code, error.reason.message, error.reason.where)
            continue
        metadata[name.removeprefix(".")] = told
        if not _RECORD_VALUES[name].fullmatch(told):
            findings.add("header-broken", f"{shown(entry.name)} says {told!r}, which torch can't read", shown(entry.name))
    metadata.pop("data/serialization_id", None)
    if metadata.get("byteorder") == "big":
        findings.add("big-endian", "written on a big-endian machine; it is byte-swapped on load and can't be mapped")
    return metadata


def _judge_script(reader: RangeReader, records: dict[str, Entry], allow: frozenset[str], found: TorchZip) -> None:
    code = sum(name.startswith("code/") and name.endswith(".py") for name in records)
    if TORCHSCRIPT_ALLOWANCE in allow:
        found.reasons.append(Reason("allowed-global", "TorchScript is on this model's allowance"))
    else:
        found.reasons.append(
            Reason("torchscript-code", f"TorchScript: {code} source files that torch.jit.load compiles; a program, not only weights")
        )
    for name in ("constants.pkl", "attributes.pkl", "bytecode.pkl", "traced_inputs.pkl"):
        entry = records.get(name)
        if entry is not None and (reader.is_local or reader.held(entry.data_offset, entry.packed_bytes) is not None):
            found.reasons += _walk_entry(reader, entry, allow, True).reasons


def _other_zip(container: Container, root: str) -> NotWeights:
    names = [entry.name for entry in container.entries[:2000]]
    if any(name.endswith(("/archive_format", "/archive_version")) for name in names) or "serialized_exported_program.json" in names:
        return NotWeights("torch-export", "a torch.export program (.pt2): a graph with weights, not a state dict")
    if any(_PACKAGED.fullmatch(name) for name in names):
        return NotWeights("torch-package", "a torch.package archive: it carries Python sources that loading would run")
    if names and all(name.endswith(".npy") for name in names):
        return NotWeights("numpy", "a numpy archive (.npz), not a torch checkpoint")
    bad = [reason for reason in container.findings.reasons() if reason.verdict == "hostile"]
    if bad:
        return NotWeights(bad[0].code, bad[0].message, bad[0].where)
    return NotWeights("plain-zip", f"a zip without a data.pkl below {shown(root)!r}: no torch checkpoint")
