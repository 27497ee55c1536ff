"""Checkpoints of the shape of Stable Diffusion 2.1 (as MVDream's): real names and shapes, any dtype, gigabytes that take no room on the disk."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from .assemble import dict_of, pickled, tensor, unicode

Shape = tuple[int, ...]


def sd21_tensors() -> dict[str, Shape]:
    """About 1,290 tensors and 1.29 billion parameters: UNet, VAE and the OpenCLIP text encoder."""
    return dict([*_unet(), *_vae(), *_text()])


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _layer(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", (shape[0],)


def _resnet(name: str, into: int, out: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.in_layers.0", into)
    yield from _layer(f"{name}.in_layers.2", out, into, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", out, 1280)
    yield from _norm(f"{name}.out_layers.0", out)
    yield from _layer(f"{name}.out_layers.3", out, out, 3, 3)
    if into != out:
        yield from _layer(f"{name}.skip_connection", out, into, 1, 1)


def _transformer(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width)
    block = f"{name}.transformer_blocks.0"
    for attention, context in (("attn1", width), ("attn2", 1024)):
        yield from _layer(f"{block}.{attention}.to_q", width, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", width, context, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", width, context, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        yield from _norm(f"{block}.norm{number}", width)
    yield from _layer(f"{name}.proj_out", width, width)


def _unet() -> Iterator[tuple[str, Shape]]:
    root = "model.diffusion_model"
    yield from _layer(f"{root}.time_embed.0", 1280, 320)
    yield from _layer(f"{root}.time_embed.2", 1280, 1280)
    yield from _layer(f"{root}.input_blocks.0.0", 320, 4, 3, 3)
    widths, skips, index, current = (320, 640, 1280, 1280), [320], 1, 320
    for level, width in enumerate(widths):
        for _ in range(2):
            yield from _resnet(f"{root}.input_blocks.{index}.0", current, width)
            if level < 3:
                yield from _transformer(f"{root}.input_blocks.{index}.1", width)
            current = width
            skips.append(width)
            index += 1
        if level < 3:
            yield from _layer(f"{root}.input_blocks.{index}.0.op", width, width, 3, 3)
            skips.append(width)
            index += 1
    yield from _resnet(f"{root}.middle_block.0", 1280, 1280)
    yield from _transformer(f"{root}.middle_block.1", 1280)
    yield from _resnet(f"{root}.middle_block.2", 1280, 1280)
    index = 0
    for level, width in reversed(list(enumerate(widths))):
        for step in range(3):
            yield from _resnet(f"{root}.output_blocks.{index}.0", current + skips.pop(), width)
            current = width
            if level < 3:
                yield from _transformer(f"{root}.output_blocks.{index}.1", width)
            if level and step == 2:
                yield from _layer(f"{root}.output_blocks.{index}.{2 if level < 3 else 1}.conv", width, width, 3, 3)
            index += 1
    yield from _norm(f"{root}.out.0", 320)
    yield from _layer(f"{root}.out.2", 4, 320, 3, 3)


def _vae() -> Iterator[tuple[str, Shape]]:
    for side, blocks in (("encoder", 2), ("decoder", 3)):
        root = f"first_stage_model.{side}"
        yield from _layer(f"{root}.conv_in", 128 if side == "encoder" else 512, 3 if side == "encoder" else 4, 3, 3)
        current = 128
        for level, width in enumerate((128, 256, 512, 512)):
            for block in range(blocks):
                name = f"{root}.{'down' if side == 'encoder' else 'up'}.{level}.block.{block}"
                yield from _norm(f"{name}.norm1", current)
                yield from _layer(f"{name}.conv1", width, current, 3, 3)
                yield from _norm(f"{name}.norm2", width)
                yield from _layer(f"{name}.conv2", width, width, 3, 3)
                current = width
        for number in (1, 2):
            yield from _norm(f"{root}.mid.block_{number}.norm1", 512)
            yield from _layer(f"{root}.mid.block_{number}.conv1", 512, 512, 3, 3)
            yield from _norm(f"{root}.mid.block_{number}.norm2", 512)
            yield from _layer(f"{root}.mid.block_{number}.conv2", 512, 512, 3, 3)
        for part in "qkv":
            yield from _layer(f"{root}.mid.attn_1.{part}", 512, 512, 1, 1)
        yield from _layer(f"{root}.conv_out", 8 if side == "encoder" else 3, 512 if side == "encoder" else 128, 3, 3)


def _text() -> Iterator[tuple[str, Shape]]:
    root = "cond_stage_model.model"
    yield f"{root}.token_embedding.weight", (49408, 1024)
    yield f"{root}.positional_embedding", (77, 1024)
    for block in range(24):
        name = f"{root}.transformer.resblocks.{block}"
        yield from _norm(f"{name}.ln_1", 1024)
        yield f"{name}.attn.in_proj_weight", (3072, 1024)
        yield f"{name}.attn.in_proj_bias", (3072,)
        yield from _layer(f"{name}.attn.out_proj", 1024, 1024)
        yield from _norm(f"{name}.ln_2", 1024)
        yield from _layer(f"{name}.mlp.c_fc", 4096, 1024)
        yield from _layer(f"{name}.mlp.c_proj", 1024, 4096)
    yield from _norm(f"{root}.ln_final", 1024)


def write_sparse(
    path: Path, tensors: dict[str, Shape], *, item: int = 4, checksums: bool = True, other: frozenset[str] = frozenset()
) -> None:
    """A torch zip as torch lays it out whose storages are holes: gigabytes by size, kilobytes on the disk; every value is zero.

    Its checksums are not those of the zeros, but a header's reader can't know: each storage has one of its own, and those of *other*
    differ from what they would be. Without *checksums* they are 0, "not computed".
    """
    kind = {4: "FloatStorage", 2: "HalfStorage"}[item]
    body = dict_of(
        [
            (
                unicode("state_dict"),
                dict_of([(unicode(name), tensor(str(i), shape, kind=kind)) for i, (name, shape) in enumerate(tensors.items())]),
            )
        ]
    )
    entries: list[tuple[str, bytes | int]] = [("data.pkl", pickled(body)), ("byteorder", b"little")]
    entries += [(f"data/{i}", math.prod(shape) * item) for i, shape in enumerate(tensors.values())]
    entries.append(("version", b"3\n"))
    names = {f"data/{i}": name for i, name in enumerate(tensors)}
    central = bytearray()
    with path.open("wb") as out:
        for name, data in entries:
            full, start = f"archive/{name}".encode(), out.tell()
            size = data if isinstance(data, int) else len(data)
            crc = zlib.crc32(data) if isinstance(data, bytes) else zlib.crc32(full) ^ (names[name] in other) if checksums else 0
            need = -(start + 34 + len(full)) % 64
            out.write(struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0x808, 0, 0, 0, 0, 0, 0, len(full), 4 + need) + full)
            out.write(b"FB" + struct.pack("<H", need) + b"Z" * need)
            if isinstance(data, bytes):
                out.write(data)
            else:
                out.seek(size, 1)
            big = start >= 0xFFFFFFFF
            out.write(struct.pack("<4sI2Q" if big else "<4sI2I", b"PK\x07\x08", crc, size, size))
            extra = struct.pack("<HHQ", 1, 8, start) if big else b""
            fields = (crc, size, size, len(full), len(extra), 0, 0, 0, 0, min(start, 0xFFFFFFFF))
            central += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 0, 0, 0x808, 0, 0, 0, *fields) + full + extra
        start, count = out.tell(), len(entries)
        out.write(central)
        out.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0x31E, 45, 0, 0, count, count, len(central), start))
        out.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(central), 1))
        out.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(central), min(start, 0xFFFFFFFF), 0))
