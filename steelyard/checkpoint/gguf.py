"""A GGUF file (llama.cpp and its kin): magic, version, counts, key-values, tensor infos, then the data at an aligned offset.

Layout: ggml/docs/gguf.md. Versions 2 and 3; version 1 had 32-bit counts and is not in use any more.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from steelyard.checkpoint.inspection import TensorInfo
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.tensors import Findings

MAX_HEADER_BYTES = 48 * 1024 * 1024
MAX_TENSORS = 50_000
MAX_KEYS = 20_000
MAX_ARRAY_TEXTS = 600_000
MAX_TEXT_BYTES = 16 * 1024 * 1024
MAX_KEY_BYTES = 65_535
MAX_DIMS = 8
FIRST_WINDOW_BYTES = 1024 * 1024

_FIXED: dict[int, str] = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("float32", 1, 4), 1: ("float16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4), 27: ("int64", 1, 8), 28: ("float64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("bfloat16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml type: name, elements in a block, bytes of a block (ggml.c, type_traits)."""


class _Short(Exception):
    """The window ends inside the header."""


def read_gguf(reader: RangeReader) -> tuple[tuple[TensorInfo, ...], dict[str, Any], list[Reason]]:
    """(tensors, a few of the key-values, reasons). The window grows fourfold until the header fits: vocabularies take megabytes.

    :raises NotWeights: when the header can't be read.
    """
    length = min(FIRST_WINDOW_BYTES if not reader.is_local else 256 * 1024, reader.size_bytes)
    while True:
        try:
            return _read(reader.read(0, length), reader.size_bytes)
        except _Short as error:
            if length >= reader.size_bytes:
                raise NotWeights("cut-off", "the file ends inside its header") from error
            if length >= MAX_HEADER_BYTES:
                raise NotWeights("header-too-big", f"a header of more than {MAX_HEADER_BYTES} bytes") from error
            length = min(length * 4, MAX_HEADER_BYTES, reader.size_bytes)


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.texts = 0

    def take(self, form: str) -> Any:
        try:
            (value,) = struct.unpack_from(form, self.data, self.at)
        except struct.error as error:
            raise _Short from error
        self.at += struct.calcsize(form)
        return value

    def skip(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise _Short
        self.at += count

    def text(self, limit: int) -> str:
        length = self.take("<Q")
        if length > limit:
            raise NotWeights("header-broken", f"a text of {length} bytes in its header")
        start = self.at
        self.skip(length)
        return self.data[start : start + min(length, 4096)].decode("utf-8", "replace")


def _read(data: bytes, size: int) -> tuple[tuple[TensorInfo, ...], dict[str, Any], list[Reason]]:
    cursor = _Cursor(data)
    cursor.skip(4)
    version, tensor_count, key_count = cursor.take("<I"), cursor.take("<Q"), cursor.take("<Q")
    if version not in (2, 3):
        if version in (1, 2 << 24, 3 << 24):
            raise NotWeights("unknown-version", f"GGUF version {version}: the old or the big-endian layout, which is not looked into")
        raise NotWeights("header-broken", f"GGUF version {version} does not exist")
    # A key takes 13 bytes at least, a tensor 24: counts beyond the file are a lie.
    if tensor_count * 24 + key_count * 13 > size:
        raise NotWeights("header-bomb", f"it claims {tensor_count} tensors and {key_count} keys in {size} bytes")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise NotWeights("header-too-big", f"{tensor_count} tensors and {key_count} keys; so many are not looked into")
    findings = Findings()
    values = _key_values(cursor, key_count, findings)
    rows = [_tensor_row(cursor) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise NotWeights("header-broken", "its alignment is no power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors = _place(rows, start, size, alignment, findings)
    told: dict[str, Any] = {key: values[key] for key in ("general.architecture", "general.name", "general.file_type") if key in values}
    return tensors, {"version": version, "keys": key_count, **told}, findings.reasons()


def _key_values(cursor: _Cursor, count: int, findings: Findings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text(MAX_KEY_BYTES)
        value = _value(cursor, cursor.take("<I"))
        if key in values:
            findings.add("duplicate-name", f"the key {shown(key)} is there twice", shown(key))
        values[key] = shown(value) if isinstance(value, str) else value
    return values


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _FIXED:
        return cursor.take(_FIXED[kind])
    if kind == _TEXT:
        return cursor.text(MAX_TEXT_BYTES)
    if kind != _ARRAY:
        raise NotWeights("header-broken", f"a value of type {kind} in its header")
    element, count = cursor.take("<I"), cursor.take("<Q")
    if element in _FIXED:
        cursor.skip(count * struct.calcsize(_FIXED[element]))
    elif element == _TEXT:
        cursor.texts += count
        if cursor.texts > MAX_ARRAY_TEXTS:
            raise NotWeights("header-too-big", f"more than {MAX_ARRAY_TEXTS} texts in its header")
        for _ in range(count):
            length = cursor.take("<Q")
            cursor.skip(length)
    else:
        raise NotWeights("header-broken", f"an array of type {element} in its header")
    return None


def _tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(MAX_KEY_BYTES)
    dims = cursor.take("<I")
    if dims > MAX_DIMS:
        raise NotWeights("header-broken", f"{shown(name)} has {dims} dimensions")
    extents = tuple(cursor.take("<Q") for _ in range(dims))
    return name, extents, cursor.take("<I"), cursor.take("<Q")


def _place(
    rows: list[tuple[str, tuple[int, ...], int, int]], start: int, size: int, alignment: int, findings: Findings
) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for name, extents, kind, offset in rows:
        if name in names:
            findings.add("duplicate-name", f"the tensor {shown(name)} is there twice", shown(name))
        names.add(name)
        shape = tuple(reversed(extents))  # ggml counts the fastest dimension first
        if kind not in TYPES:
            findings.add("unknown-dtype", f"{shown(name)} is of ggml type {kind}, whose size is not known", shown(name))
            continue
        dtype, block, block_bytes = TYPES[kind]
        numel = math.prod(shape)
        if numel % block or (extents and extents[0] % block):
            findings.add("size-mismatch", f"{shown(name)} of type {dtype} does not divide into blocks of {block}", shown(name))
        if offset % alignment:
            findings.add("header-broken", f"{shown(name)} begins at {offset}, no multiple of {alignment}", shown(name))
        nbytes = numel // block * block_bytes
        tensors.append(TensorInfo(name, shape, dtype, nbytes, offset=start + offset, storage=name, storage_nbytes=nbytes))
    _check_ends(tensors, start, size, alignment, findings)
    return tuple(tensors)


def _check_ends(tensors: list[TensorInfo], start: int, size: int, alignment: int, findings: Findings) -> None:
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset or 0, t.nbytes)):
        assert tensor.offset is not None
        if tensor.offset < end:
            findings.add("overlapping-entries", f"{shown(tensor.name)} shares bytes with another tensor", shown(tensor.name))
        end = max(end, tensor.offset + tensor.nbytes)
    if end > size:
        findings.add("cut-off", f"the file has {size} bytes where its tensors need {end}")
    elif size - end >= 2 * alignment:
        findings.add("trailing-bytes", f"{size - end} bytes follow the last tensor")
