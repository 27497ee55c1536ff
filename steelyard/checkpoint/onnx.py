"""An ONNX file: as much of the protobuf as lists the initializers (the weights), skipping over nodes and bytes.

Field numbers: onnx/onnx.proto — ModelProto.graph 7, GraphProto.initializer 5, TensorProto dims 1, data_type 2, name 8, raw_data 9,
external_data 13, data_location 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from steelyard.checkpoint.inspection import TensorInfo
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.sharded import confined
from steelyard.checkpoint.tensors import Findings

MAX_FIELDS = 300_000
MAX_SMALL_BYTES = 64 * 1024
WINDOW_BYTES = 64 * 1024
MAX_GRAPH_DEPTH = 16

DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32), 7: ("int64", 64),
    9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64),
    15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8),
    20: ("float8_e5m2fnuz", 8), 21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1", 4), 24: ("float8_e8m0fnu", 8),
}  # fmt: skip
"""TensorProto.DataType: name and bits per element. 8, text, is no weight."""


def read_onnx(reader: RangeReader) -> tuple[tuple[TensorInfo, ...], dict[str, Any], list[Reason]]:
    """(initializers and constants, facts about the model, reasons).

    :raises NotWeights: when the protobuf breaks off, or a remote file would take too many requests.
    """
    fields = _Fields(reader)
    findings = Findings()
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    graphs = 0
    for number, wire, start, end in fields.walk(0, reader.size_bytes):
        if number == 1 and wire == 0:
            metadata["ir_version"] = start
        elif number == 2 and wire == 2:
            metadata["producer"] = shown(fields.small(start, end).decode("utf-8", "replace"), 60)
        elif number == 7 and wire == 2:
            graphs += 1
            _graph(fields, start, end, tensors, findings, 0)
    if graphs != 1:
        raise NotWeights("header-broken", f"an ONNX model with {graphs} graphs")
    if not tensors:
        findings.add("no-tensors", "it holds no tensor")
    return tuple(tensors), metadata, findings.reasons()


def _graph(fields: _Fields, start: int, end: int, tensors: list[TensorInfo], findings: Findings, depth: int) -> None:
    """Initializers of a graph, and tensors in its nodes: a Constant holds one, an If or Loop holds graphs (GraphProto.node 1, initializer 5)."""
    if depth > MAX_GRAPH_DEPTH:
        raise NotWeights("header-bomb", f"graphs nested more than {MAX_GRAPH_DEPTH} deep")
    for number, wire, begin, stop in fields.walk(start, end):
        if number == 5 and wire == 2:
            tensors.append(_tensor(fields, begin, stop, findings))
        elif number == 1 and wire == 2:
            _node(fields, begin, stop, tensors, findings, depth)


def _node(fields: _Fields, start: int, end: int, tensors: list[TensorInfo], findings: Findings, depth: int) -> None:
    """NodeProto: output 2, attribute 5; AttributeProto: t 5, g 6, tensors 10, graphs 11."""
    output = ""
    for number, wire, begin, stop in fields.walk(start, end):
        if number == 2 and wire == 2:
            output = fields.small(begin, stop).decode("utf-8", "replace")
        elif number == 5 and wire == 2:
            for inner, inner_wire, inner_begin, inner_stop in fields.walk(begin, stop):
                if inner in (5, 10) and inner_wire == 2:
                    tensor = _tensor(fields, inner_begin, inner_stop, findings)
                    tensors.append(replace(tensor, name=output or tensor.name))
                elif inner in (6, 11) and inner_wire == 2:
                    _graph(fields, inner_begin, inner_stop, tensors, findings, depth + 1)


class _Fields:
    """Protobuf fields by position: nothing is kept that is not asked for."""

    def __init__(self, reader: RangeReader) -> None:
        self.reader = reader
        self.seen = 0
        self._start = 0
        self._data = b""

    def _byte(self, at: int) -> int:
        if not self._start <= at < self._start + len(self._data):
            self._start = at
            self._data = self.reader.read(at, WINDOW_BYTES)
            if not self._data:
                raise NotWeights("cut-off", "the file ends inside its protobuf")
        return self._data[at - self._start]

    def small(self, start: int, end: int) -> bytes:
        if end - start > MAX_SMALL_BYTES:
            raise NotWeights("header-broken", f"a text of {end - start} bytes in its protobuf")
        if self._start <= start and end <= self._start + len(self._data):
            return self._data[start - self._start : end - self._start]
        return self.reader.read(start, end - start)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise NotWeights("header-broken", "its protobuf breaks off")
            byte = self._byte(at)
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise NotWeights("header-broken", "its protobuf holds a number without an end")

    def walk(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, start, end) for each field between *at* and *end*; for a varint, *start* is its value."""
        while at < end:
            self.seen += 1
            if self.seen > MAX_FIELDS:
                raise NotWeights("header-too-big", f"a protobuf of more than {MAX_FIELDS} fields")
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise NotWeights("header-broken", "its protobuf holds a field number 0")
            if wire == 0:
                value, at = self.varint(at, end)
                yield number, wire, value, at
                continue
            if wire == 2:
                length, at = self.varint(at, end)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise NotWeights("header-broken", f"its protobuf holds a field of wire type {wire}")
            if at + length > end:
                code = "cut-off" if end == self.reader.size_bytes else "header-broken"
                raise NotWeights(code, f"a field of {length} bytes reaches past the end of its protobuf")  # type: ignore[arg-type]
            yield number, wire, at, at + length
            at += length


def _tensor(fields: _Fields, start: int, end: int, findings: Findings) -> TensorInfo:
    dims: list[int] = []
    kind, name, raw, data, external = 0, "", None, 0, False
    for number, wire, begin, stop in fields.walk(start, end):
        if number == 1 and wire == 0:
            dims.append(begin)
        elif number == 1 and wire == 2:  # packed
            at = begin
            while at < stop and len(dims) < 64:
                value, at = fields.varint(at, stop)
                dims.append(value)
        elif number == 2 and wire == 0:
            kind = begin
        elif number == 8 and wire == 2:
            name = fields.small(begin, stop).decode("utf-8", "replace")
        elif number == 9 and wire == 2:
            raw = (begin, stop)
        elif number in (4, 5, 6, 7, 10, 11):
            data += stop - begin
        elif number == 13 and wire == 2:
            external = True
            _external(fields, begin, stop, name, findings)
    shape = tuple(dims)
    if kind not in DTYPES or len(shape) > 64 or any(extent >= 2**62 for extent in shape):
        findings.add("unknown-dtype", f"{shown(name)} is of ONNX type {kind}, whose size is not known", shown(name))
        return TensorInfo(name, shape, f"onnx-{kind}", data)
    dtype, bits = DTYPES[kind]
    nbytes = -(-math.prod(shape) * bits // 8)
    if raw is not None and raw[1] - raw[0] != nbytes:
        findings.add("size-mismatch", f"{shown(name)} has {raw[1] - raw[0]} bytes where its shape needs {nbytes}", shown(name))
    elif raw is None and not external and nbytes and not data:
        findings.add("size-mismatch", f"{shown(name)} has no bytes where its shape needs {nbytes}", shown(name))
    return TensorInfo(name, shape, dtype, nbytes, offset=raw[0] if raw else None, storage=name if raw else None, storage_nbytes=nbytes)


def _external(fields: _Fields, start: int, end: int, name: str, findings: Findings) -> None:
    """StringStringEntryProto {key 1, value 2}: "location" names a file beside the model."""
    texts = {
        number: fields.small(begin, stop).decode("utf-8", "replace") for number, wire, begin, stop in fields.walk(start, end) if wire == 2
    }
    if texts.get(1) != "location":
        return
    if not confined(texts.get(2, "")):
        findings.add("escaping-name", f"{shown(name)} would be read from {shown(texts.get(2, ''))!r}, outside its folder", shown(name))
    else:
        findings.add("external-data", f"{shown(name)} lies in another file, {shown(texts.get(2, ''))}", shown(name))
