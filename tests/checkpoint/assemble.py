"""Zips, pickles, GGUF and ONNX files put together by hand, so that every byte of them may lie."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

ALIGN = 64


@dataclass
class Part:
    """An entry of a zip. The optional fields replace what an honest writer would put there."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    local_name: str | None = None
    local_crc: int | None = None
    local_method: int | None = None
    claimed_size: int | None = None
    gap: bytes = b""
    align: bool = True
    header_offset: int | None = None


def zip_of(
    parts: Sequence[Part], *, comment: bytes = b"", after: bytes = b"", before_directory: bytes = b"", zip64_start: int | None = None
) -> bytes:
    out = bytearray()
    central = bytearray()
    for part in parts:
        out += part.gap
        offset = len(out) if part.header_offset is None else part.header_offset
        crc = zlib.crc32(part.data) if part.crc is None else part.crc
        packed = part.data
        if part.method == 8:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = packer.compress(part.data) + packer.flush()
        size = len(part.data) if part.claimed_size is None else part.claimed_size
        name = part.name.encode("utf-8", "surrogateescape")
        local_name = (part.local_name if part.local_name is not None else part.name).encode()
        if part.header_offset is None:
            extra = b""
            if part.align and part.data:
                need = -(len(out) + 30 + len(local_name) + 4) % ALIGN
                extra = b"FB" + struct.pack("<H", need) + b"Z" * need
            local_crc = crc if part.local_crc is None else part.local_crc
            method = part.method if part.local_method is None else part.local_method
            head = struct.pack(
                "<4sHHHHHIIIHH", b"PK\x03\x04", 20, part.flags, method, 0, 0, local_crc, len(packed), size, len(local_name), len(extra)
            )
            out += head + local_name + extra + packed
        central += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            b"PK\x01\x02",
            20,
            20,
            part.flags,
            part.method,
            0,
            0,
            crc,
            len(packed),
            size,
            len(name),
            0,
            0,
            0,
            0,
            0,
            offset,
        )
        central += name
    out += before_directory
    start = len(out)
    out += central
    if zip64_start is not None:
        record = len(out)
        out += struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, len(parts), len(parts), len(central), zip64_start)
        out += struct.pack("<4sIQI", b"PK\x06\x07", 0, record, 1)
    out += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, len(parts), len(parts), len(central), start, len(comment)) + comment
    return bytes(out) + after


def unicode(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(path: str, *args: bytes) -> bytes:
    return name(path) + b"(" + b"".join(args) + b"tR"


def integers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(integer(v) for v in values) + b"t"


def tensor(
    key: str,
    shape: Sequence[int],
    *,
    numel: int | None = None,
    stride: Sequence[int] | None = None,
    offset: int = 0,
    kind: str = "FloatStorage",
) -> bytes:
    count = 1
    strides: list[int] = []
    for extent in reversed(shape):
        strides.insert(0, count)
        count *= extent
    storage = (
        b"("
        + unicode("storage")
        + name(f"torch.{kind}")
        + unicode(key)
        + unicode("cpu")
        + integer(count if numel is None else numel)
        + b"tQ"
    )
    hooks = name("collections.OrderedDict") + b")R"
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage,
        integer(offset),
        integers(shape),
        integers(stride if stride is not None else strides),
        b"\x89",
        hooks,
    )


def dict_of(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


@dataclass
class Checkpoint:
    """A torch zip under construction: change a piece, then `build`."""

    body: bytes = b""
    storages: dict[str, bytes] = field(default_factory=dict)
    extra: list[Part] = field(default_factory=list)
    root: str = "archive"

    def parts(self) -> list[Part]:
        fixed = [Part(f"{self.root}/data.pkl", pickled(self.body)), Part(f"{self.root}/byteorder", b"little")]
        held = [Part(f"{self.root}/data/{key}", data) for key, data in self.storages.items()]
        return [*fixed, *held, Part(f"{self.root}/version", b"3\n"), *self.extra]

    def build(self) -> bytes:
        return zip_of(self.parts())


def small() -> Checkpoint:
    """Two tensors: weight 4x3 and bias 4, float32."""
    body = dict_of([(unicode("weight"), tensor("0", [4, 3])), (unicode("bias"), tensor("1", [4]))])
    return Checkpoint(body, {"0": bytes(range(48)), "1": b"\0\0\x80\x3f" * 4})


def with_payload(payload: bytes) -> bytes:
    """A good checkpoint whose dict also holds the result of *payload*."""
    made = small()
    made.body = dict_of([(unicode("weight"), tensor("0", [4, 3])), (unicode("bias"), tensor("1", [4])), (unicode("x"), payload)])
    return made.build()


def safetensors_of(header: bytes, data: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def gguf_of(
    tensors: Sequence[tuple[str, Sequence[int], int, int]],
    data: bytes,
    *,
    version: int = 3,
    count: int | None = None,
    keys: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """*tensors*: (name, extents, ggml type, offset); *keys*: (key, type and value as bytes)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if count is None else count, len(keys))
    for key, value in keys:
        out += text(key) + value
    for title, extents, kind, offset in tensors:
        out += (
            text(title)
            + struct.pack("<I", len(extents))
            + b"".join(struct.pack("<Q", extent) for extent in extents)
            + struct.pack("<IQ", kind, offset)
        )
    return out + b"\0" * (-len(out) % 32) + data


def proto(number: int, value: bytes | int) -> bytes:
    """A protobuf field: a varint or a length-delimited one."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def onnx_of(*initializers: bytes) -> bytes:
    graph = b"".join(proto(5, tensor_proto) for tensor_proto in initializers) + proto(2, b"graph")
    return proto(1, 8) + proto(2, b"by hand") + proto(7, graph)


def onnx_tensor(title: str, dims: Sequence[int], raw: bytes | None, *extra: bytes) -> bytes:
    out = b"".join(proto(1, extent) for extent in dims) + proto(2, 1) + proto(8, title.encode())
    return out + (proto(9, raw) if raw is not None else b"") + b"".join(extra)
