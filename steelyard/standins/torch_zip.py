"""Synthetic checkpoints without torch: genuine torch zips of any size, and second revisions of them with known differences."""

from __future__ import annotations

import hashlib
import math
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

CHUNK_BYTES = 4 << 20
ALIGN_BYTES = 64

TensorSpec = tuple[str, tuple[int, ...], int | float]
"""dtype, shape, and either an int that seeds the values or a float that all of them have."""


@dataclass(frozen=True)
class Dtype:
    storage: str
    size_bytes: int
    pack: str
    """struct code for a constant; bfloat16 has none and is packed as the upper half of a float."""
    top_bytes: bytes | None
    """Top bytes that make random values small and finite; None: any bytes do."""


_SMALL = bytes([0x3C, 0x3D, 0x3E, 0xBC, 0xBD, 0xBE])
DTYPES = {
    "float64": Dtype("DoubleStorage", 8, "<d", bytes([0x3F, 0xBF])),
    "float32": Dtype("FloatStorage", 4, "<f", _SMALL),
    "float16": Dtype("HalfStorage", 2, "<e", bytes([0x24, 0x28, 0x2C, 0x30, 0xA4, 0xA8, 0xAC, 0xB0])),
    "bfloat16": Dtype("BFloat16Storage", 2, "", _SMALL),
    "int64": Dtype("LongStorage", 8, "<q", bytes([0])),
    "int32": Dtype("IntStorage", 4, "<i", bytes([0])),
    "int16": Dtype("ShortStorage", 2, "<h", None),
    "int8": Dtype("CharStorage", 1, "<b", None),
    "uint8": Dtype("ByteStorage", 1, "<B", None),
    "bool": Dtype("BoolStorage", 1, "<?", bytes([0, 1])),
}


def write_torch_zip(path: Path, tensors: Mapping[str, TensorSpec], *, under: str | None = None, step: int | None = None) -> None:
    """Write what `torch.save` writes for a dict of tensors, laid out as torch 2.13 does: stored, 64-byte aligned, data descriptors.

    *under* puts the dict below that key; *step* adds an int beside it. Values depend on the spec alone: the same specs give the same bytes.
    Memory stays below 32 MiB whatever the size. Not atomic: a file for tests.
    """
    with path.open("wb", buffering=0) as out:
        archive = _Archive(out, path.stem)
        archive.add("data.pkl", [_pickled(tensors, under, step)])
        archive.add(".format_version", [b"1"])
        archive.add(".storage_alignment", [str(ALIGN_BYTES).encode()])
        archive.add("byteorder", [b"little"])
        for key, spec in enumerate(tensors.values()):
            archive.add(f"data/{key}", _values(spec))
        archive.add("version", [b"3\n"])
        digits = int(hashlib.sha256(repr(list(tensors.items())).encode()).hexdigest(), 16)
        archive.add(".data/serialization_id", [f"{digits % 10**40:040}".encode()])
        archive.finish()


def second_revision(path_in: Path, path_out: Path, changed: Collection[str]) -> None:
    """Copy a torch zip with other values in the named tensors, every CRC put right; nothing else differs, not even in length.

    Works on real checkpoints too. A name is the tensor's key, or the dotted keys that lead to it.
    :raises KeyError: when a name is not in the file.
    """
    storages = tensor_storages(path_in)
    shutil.copyfile(path_in, path_out)
    with zipfile.ZipFile(path_in) as archive, path_out.open("r+b", buffering=0) as out:
        members = {info.filename: info for info in archive.infolist()}
        prefix = next(name for name in members if name.endswith("/data.pkl")).removesuffix("data.pkl")
        for name in changed:
            key, item_bytes = storages[name]
            info = members[f"{prefix}data/{key}"]
            crc = _shift_values(out, _data_offset(out, info), info.file_size, item_bytes)
            _put_crc(out, info, archive.start_dir, crc)


def tensor_storages(path: Path) -> dict[str, tuple[str, int]]:
    """For every tensor of a torch zip: the key of its storage and the size of an item [bytes]. Nothing in the file is executed."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as file:
            loaded = _Inert(file).load()
    return dict(_flatten(loaded, ()))


class _Archive:
    """A zip as torch's own writer lays it out; sizes and CRCs follow the data, so nothing is known in advance."""

    def __init__(self, out: BinaryIO, stem: str) -> None:
        self._out, self._stem = out, stem
        self._at = 0
        self._directory: list[bytes] = []

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._out.write(rest) :]
        self._at += len(data)

    def add(self, name: str, chunks: Iterator[memoryview] | list[bytes]) -> None:
        full = f"{self._stem}/{name}".encode()
        start = self._at
        padding = -(start + 34 + len(full)) % ALIGN_BYTES
        extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        self._write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x808, 0, 0, 0, 0, 0, 0, len(full), len(extra)) + full + extra)
        crc, size = 0, 0
        for chunk in chunks:
            self._write(chunk)
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        big = size >= 0xFFFFFFFF
        self._write(struct.pack("<4sI2Q" if big else "<4sI2I", b"PK\x07\x08", crc, size, size))
        wide = [size, size] * big + [start] * (start >= 0xFFFFFFFF)
        more = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        short = 0xFFFFFFFF if big else size
        sizes = (crc, short, short, len(full), len(more), 0, 0, 0, 0, min(start, 0xFFFFFFFF))
        self._directory.append(struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 0, 0, 0x808, 0, 0, 0, *sizes) + full + more)

    def finish(self) -> None:
        start, count = self._at, len(self._directory)
        for entry in self._directory:
            self._write(entry)
        size, end = self._at - start, self._at
        self._write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x31E, 45, 0, 0, count, count, size, start))
        self._write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
        few = min(count, 0xFFFF)
        self._write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, few, few, size, min(start, 0xFFFFFFFF), 0))


def _pickled(tensors: Mapping[str, TensorSpec], under: str | None, step: int | None) -> bytes:
    """data.pkl, protocol 2, written opcode by opcode: pickling the real thing would need torch's classes."""
    parts = [b"\x80\x02}("]
    if under:
        parts += [_text(under), b"}("]
    for key, (name, (dtype, shape, _)) in enumerate(tensors.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = f"ctorch\n{DTYPES[dtype].storage}\n".encode()
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        parts += [_text("storage"), storage, _text(str(key)), _text("cpu"), _int(math.prod(shape)), b"tQ", _int(0)]
        parts += [b"(", *map(_int, shape), b"t(", *map(_int, strides), b"t\x89ccollections\nOrderedDict\n)RtR"]
    if under:
        parts.append(b"u")
    if step is not None:
        parts += [_text("step"), _int(step)]
    return b"".join(parts) + b"u."


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _values(spec: TensorSpec) -> Iterator[memoryview]:
    """The storage's bytes. A long one repeats one chunk of values, begun elsewhere each time: no two chunks are alike, and it is quick."""
    dtype, shape, value = spec
    kind, total = DTYPES[dtype], math.prod(shape) * DTYPES[dtype].size_bytes
    length = min(total, CHUNK_BYTES)
    pattern = _random(kind, length, value) if isinstance(value, int) else _constant(kind, length, value)
    twice = memoryview(pattern + pattern)
    items = length // kind.size_bytes
    for index, offset in enumerate(range(0, total, CHUNK_BYTES)):
        begin = (index * 65_537) % items * kind.size_bytes
        yield twice[begin : begin + min(length, total - offset)]


def _random(kind: Dtype, length: int, seed: int) -> bytes:
    values = bytearray(random.Random(seed).randbytes(length))  # noqa: S311 - values, not secrets
    if kind.top_bytes:
        tops = bytes(kind.top_bytes[byte % len(kind.top_bytes)] for byte in range(256))
        values[kind.size_bytes - 1 :: kind.size_bytes] = values[kind.size_bytes - 1 :: kind.size_bytes].translate(tops)
    return bytes(values)


def _constant(kind: Dtype, length: int, value: float) -> bytes:
    typed = value if kind.pack in ("<d", "<f", "<e") else int(value)
    one = struct.pack(kind.pack, typed) if kind.pack else struct.pack("<f", value)[2:]
    return one * (length // kind.size_bytes)


def _shift_values(out: BinaryIO, offset: int, size: int, item_bytes: int) -> int:
    """Change the lowest bit of every item, which keeps floats finite and bools bools; returns the new CRC-32."""
    other = bytes(byte ^ 1 for byte in range(256))
    crc = 0
    for at in range(0, size, CHUNK_BYTES):
        out.seek(offset + at)
        chunk = bytearray(out.read(min(CHUNK_BYTES, size - at)))
        chunk[::item_bytes] = chunk[::item_bytes].translate(other)
        crc = zlib.crc32(chunk, crc)
        out.seek(offset + at)
        out.write(chunk)
    return crc


def _data_offset(out: BinaryIO, info: zipfile.ZipInfo) -> int:
    # The extra field of the local header is not the directory's: it holds the padding.
    out.seek(info.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<2H", out.read(4))
    return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def _put_crc(out: BinaryIO, info: zipfile.ZipInfo, directory: int, crc: int) -> None:
    packed = struct.pack("<I", crc)
    if info.flag_bits & 8:
        out.seek(_data_offset(out, info) + info.compress_size)
        if out.read(4) == b"PK\x07\x08":
            out.write(packed)
    else:
        out.seek(info.header_offset + 14)
        out.write(packed)
    at = directory
    while True:
        out.seek(at)
        entry = out.read(46)
        if entry[:4] != b"PK\x01\x02":
            raise KeyError(info.filename)
        name_bytes, extra_bytes, comment_bytes = struct.unpack("<3H", entry[28:34])
        if out.read(name_bytes).decode() == info.filename:
            out.seek(at + 16)
            out.write(packed)
            return
        at += 46 + int(name_bytes) + int(extra_bytes) + int(comment_bytes)


class _Found:
    """What any class or function of a pickle becomes: remembers how it was called, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        """Whatever it is, it is dropped."""


class _Dict(dict[str, Any]):
    """Unlike a plain dict it takes the attributes that a state dict brings along (_metadata)."""


class _Inert(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Dict if (module, name) == ("collections", "OrderedDict") else type(name, (_Found,), {})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, int]]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flatten(below, (*path, str(key)))
    elif isinstance(value, _Found) and type(value).__name__ in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        inner = value.args[0]
        if isinstance(inner, _Found):  # a parameter wraps its tensor
            yield from _flatten(inner, path)
            return
        sizes = {kind.storage: kind.size_bytes for kind in DTYPES.values()}
        found = (str(inner[2]), sizes[inner[1].__name__])
        yield ".".join(path), found
        yield path[-1], found
