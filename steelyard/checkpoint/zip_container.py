"""Our own walk over a zip's headers: strict, bounded, and the same view that torch's reader (miniz) has of the file.

Python's zipfile forgives what deceives: it takes the last of two entries of one name where torch takes the first, and never compares the
name in the central directory with the one before the data. Layout: PKWARE APPNOTE 6.3.10.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, ReasonCode, shown
from steelyard.checkpoint.tensors import Findings

MAX_ENTRIES = 50_000
MAX_DIRECTORY_BYTES = 16 * 1024 * 1024
MAX_NAME_BYTES = 1024
MAX_RATIO = 100
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
"""An entry that unpacks to more than this and to more than MAX_RATIO times its bytes is a bomb; deflate of real weights gives 1.1."""

STORED, DEFLATED = 0, 8
_EOCD = struct.Struct("<4sHHHHIIH")
_EOCD64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_FULL = 0xFFFFFFFF
_DOS_FOLDER = 0x10


class Entry(NamedTuple):
    """One file in the zip. *data_offset* is where its bytes begin; *checked* whether its local header was read and agrees."""

    name: str
    method: int
    flags: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    header_offset: int
    data_offset: int
    checked: bool


@dataclass(slots=True)
class Container:
    entries: list[Entry] = field(default_factory=list)
    """By place in the file."""
    root: str = ""
    """The folder of the directory's first entry: torch's reader takes it for the archive's (caffe2/serialize, PyTorchStreamReader::init)."""
    findings: Findings = field(default_factory=Findings)
    local_headers_read: int = 0


def read_container(reader: RangeReader) -> Container:
    """Walk the directory and, where reading is cheap, every local header.

    On a remote source only the local headers inside windows already fetched are compared; of the others the place is inferred from
    the layout, which must add up to the byte.
    :raises NotWeights: when there is no directory to walk.
    """
    found = Container()
    start, size, count = _find_directory(reader, found.findings)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise NotWeights("too-many-entries", f"a zip of {count} entries; more than {MAX_ENTRIES} are not looked into")
    raw = _central_entries(reader.keep(start, size), count, found.findings)
    found.root = raw[0].name.partition("/")[0] if raw else ""
    raw.sort(key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in raw[1:]), start] if raw else []
    for entry, end in zip(raw, ends, strict=True):
        found.entries.append(_placed(reader, entry, end, found))
    _check_names(raw, found.findings)
    _check_layout(found, start)
    return found


def _find_directory(reader: RangeReader, findings: Findings) -> tuple[int, int, int]:
    """(offset, bytes, entries) of the central directory."""
    tail_start, tail = reader.tail()
    at = tail.rfind(b"PK\x05\x06", max(0, len(tail) - _EOCD.size - 0xFFFF))
    if at < 0 or len(tail) - at < _EOCD.size:
        raise NotWeights("cut-off", "a zip without its directory at the end: the file was cut off or never finished")
    if _earlier_end_record(tail, at):
        raise NotWeights("polyglot", "the zip has two end records, one in the other's comment: two readers would see two files")
    _, disk, first_disk, here, count, size, start, comment = _EOCD.unpack_from(tail, at)
    end = at + _EOCD.size
    if end + comment != len(tail):
        findings.add("trailing-bytes", f"{len(tail) - end - comment} bytes follow the end of the zip")
    if comment:
        findings.add("zip-comment", f"the zip carries a comment of {comment} bytes")
    if disk or first_disk or here != count:
        findings.add("header-mismatch", "the zip claims to span several disks")
    directory_end = tail_start + at
    locator = reader.read(directory_end - _LOCATOR.size, _LOCATOR.size)
    if locator[:4] == b"PK\x06\x07":  # torch's writer always adds the zip64 records
        _, at_disk, record, disks = _LOCATOR.unpack(locator)
        data = reader.read(record, _EOCD64.size) if record < directory_end else b""
        if len(data) < _EOCD64.size or data[:4] != b"PK\x06\x06":
            raise NotWeights("header-broken", "the zip64 record is not where its locator says")
        _, length, _, _, disk, first_disk, here, wide_count, wide_size, wide_start = _EOCD64.unpack(data)
        if record + 12 + length != directory_end - _LOCATOR.size:
            findings.add("hidden-bytes", "the zip64 record is not of the length it claims")
        if at_disk or disks != 1 or disk or first_disk or here != wide_count:
            findings.add("header-mismatch", "the zip claims to span several disks")
        for narrow, wide, full in ((count, wide_count, 0xFFFF), (size, wide_size, _FULL), (start, wide_start, _FULL)):
            if narrow not in (wide, full):
                findings.add("header-mismatch", "the zip's two end records point to two directories: readers would differ")
        count, size, start, directory_end = wide_count, wide_size, wide_start, record
    if start + size != directory_end:
        raise NotWeights("header-broken", f"the zip's directory should end at byte {start + size}, its end record is at {directory_end}")
    return start, size, count


def _earlier_end_record(tail: bytes, last: int) -> bool:
    """Whether an end record before the one at *last* would be a valid one, too: its comment reaches exactly to the end of the file."""
    at = tail.rfind(b"PK\x05\x06", 0, last)
    while at >= 0:
        if at + _EOCD.size + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
            return True
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return False


def _central_entries(data: bytes, count: int, findings: Findings) -> list[Entry]:
    entries: list[Entry] = []
    at = 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\x01\x02":
            raise NotWeights("header-broken", f"the zip's directory breaks off after {len(entries)} of {count} entries")
        fields = _CENTRAL.unpack_from(data, at)
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_len, extra_len, comment_len, offset = fields[10], fields[11], fields[12], fields[16]
        end = at + _CENTRAL.size + name_len + extra_len + comment_len
        if end > len(data) or name_len > MAX_NAME_BYTES:
            raise NotWeights("header-broken", "an entry of the zip's directory reaches past its end")
        name = data[at + _CENTRAL.size : at + _CENTRAL.size + name_len].decode("utf-8", "surrogateescape")
        if _FULL in (packed, size, offset):
            extra = data[at + _CENTRAL.size + name_len : at + _CENTRAL.size + name_len + extra_len]
            size, packed, offset = _wide(extra, size, packed, offset)
        if fields[13]:
            findings.add("header-mismatch", f"{shown(name)} claims to be on another disk", shown(name))
        if size and (fields[15] & _DOS_FOLDER or name.endswith("/")):
            # miniz takes it for a folder and reports success without reading: torch then works on memory that was never filled.
            findings.add(
                "header-mismatch",
                f"{shown(name)} has bytes, yet is marked as a folder: torch would read other bytes than we do",
                shown(name),
            )
        if flags & 0x41:
            raise NotWeights("encrypted", f"{shown(name)} is encrypted")
        if method not in (STORED, DEFLATED):
            raise NotWeights("header-broken", f"{shown(name)} is packed by method {method}, which torch does not read")
        if method == STORED and packed != size:
            findings.add("header-mismatch", f"{shown(name)} is stored, yet its two sizes differ ({packed}, {size})", shown(name))
        if size > MAX_UNPACKED_BYTES and size > MAX_RATIO * max(packed, 1):
            findings.add("zip-bomb", f"{shown(name)} would unpack {packed} bytes to {size}", shown(name))
        entries.append(Entry(name, method, flags, crc, packed, size, offset, -1, False))
        at = end
    if at != len(data):
        findings.add("hidden-bytes", f"{len(data) - at} bytes of the zip's directory belong to no entry")
    return entries


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The zip64 extra field (id 1) holds, in this order, only the numbers that did not fit."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            held = extra[at + 4 : at + 4 + length]
            values = [int.from_bytes(held[i : i + 8], "little") for i in range(0, len(held) - 7, 8)]
            size = values.pop(0) if size == _FULL and values else size
            packed = values.pop(0) if packed == _FULL and values else packed
            offset = values.pop(0) if offset == _FULL and values else offset
            break
        at += 4 + length
    return size, packed, offset


def _placed(reader: RangeReader, entry: Entry, next_header: int, found: Container) -> Entry:
    """*entry* with its data's place, from its local header if that can be read, else from where the next header begins."""
    if reader.is_local or reader.held(entry.header_offset, _local_bytes(entry)) is not None:
        return check_local_header(reader, entry, found)
    return entry._replace(data_offset=next_header - _descriptor_bytes(entry) - entry.packed_bytes)


def _local_bytes(entry: Entry) -> int:
    return _LOCAL.size + len(entry.name.encode("utf-8", "surrogateescape"))


def check_local_header(reader: RangeReader, entry: Entry, found: Container) -> Entry:
    """Read the header before the data of *entry* and compare it with the directory; differences go to the findings.

    :raises NotWeights: "header-broken" when there is none.
    """
    name = entry.name.encode("utf-8", "surrogateescape")
    header = reader.read(entry.header_offset, _local_bytes(entry))
    found.local_headers_read += 1
    if len(header) < _local_bytes(entry) or header[:4] != b"PK\x03\x04":
        raise NotWeights("header-broken", f"no header before the data of {shown(entry.name)} at byte {entry.header_offset}")
    _, _, flags, method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack_from(header)
    if name_len != len(name) or header[_LOCAL.size :] != name:
        found.findings.add(
            "header-mismatch", f"{shown(entry.name)} has another name before its data than in the directory", shown(entry.name)
        )
    deferred = bool(flags & 8)  # sizes and CRC follow the data; the header may hold zeros
    sizes = {entry.packed_bytes, entry.size_bytes, _FULL} | ({0} if deferred else set())
    if method != entry.method or (flags ^ entry.flags) & ~0x0806 or packed not in sizes or size not in sizes:
        found.findings.add(
            "header-mismatch", f"{shown(entry.name)}: the header before its data contradicts the directory", shown(entry.name)
        )
    elif crc != entry.crc32 and not (deferred and crc == 0):
        found.findings.add("header-mismatch", f"{shown(entry.name)} has two checksums", shown(entry.name))
    return entry._replace(data_offset=entry.header_offset + _LOCAL.size + name_len + extra_len, checked=True)


def _descriptor_bytes(entry: Entry) -> int:
    """Bytes after the data: torch's writer appends a descriptor, of 24 bytes where a number needs 64 bits (miniz)."""
    if not entry.flags & 8:
        return 0
    return 24 if entry.header_offset >= _FULL or entry.size_bytes >= _FULL or entry.packed_bytes >= _FULL else 16


def _check_names(entries: list[Entry], findings: Findings) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.name
        folded = name.lower()  # some readers, and some disks, do not tell DATA.PKL from data.pkl
        if folded in seen:
            code: ReasonCode = "duplicate-data-pkl" if folded.endswith("data.pkl") else "duplicate-entry"
            findings.add(code, f"{shown(name)} is in the zip twice: torch reads one, other tools the other", shown(name))
        seen.add(folded)
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
            findings.add("escaping-name", f"the entry name {shown(name)!r} would leave its folder", shown(name))
        elif not name.isprintable() or name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") != name:
            findings.add("odd-name", f"an entry is called {shown(name)!r}", shown(name))


def _check_layout(found: Container, directory_start: int) -> None:
    """Entries follow one another from byte 0 to the directory: none overlaps, nothing hides between them."""
    previous_end = 0
    previous = ""
    for entry in found.entries:
        if entry.data_offset < entry.header_offset + _LOCAL.size + len(entry.name):
            found.findings.add("overlapping-entries", f"{shown(entry.name)} begins inside another entry", shown(entry.name))
        gap = entry.header_offset - previous_end
        if gap < 0:
            found.findings.add("overlapping-entries", f"{shown(previous)} and {shown(entry.name)} share bytes", shown(entry.name))
        elif gap > 24:
            found.findings.add("hidden-bytes", f"{gap} bytes before {shown(entry.name)} belong to no entry", shown(entry.name))
        previous_end = entry.data_offset + entry.packed_bytes
        previous = entry.name
    if previous_end > directory_start:
        found.findings.add("size-mismatch", f"{shown(previous)} reaches past the zip's directory", shown(previous))
    elif directory_start - previous_end > 24:
        found.findings.add("hidden-bytes", f"{directory_start - previous_end} bytes before the zip's directory belong to no entry")
