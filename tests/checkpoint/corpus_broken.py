"""Files that are damaged, cut, or no weights at all."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

from .assemble import Part, dict_of, gguf_of, integer, name, onnx_of, onnx_tensor, pickled, safetensors_of, small, tensor, unicode, zip_of
from .corpus import case
from .corpus_good import saved, sharded, state

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 5214865159\n"


def _plain(name: str, code: str, data: bytes | Callable[[], bytes], **where: str) -> None:
    case(f"broken: {name}", "broken", code, **where)(lambda _: data() if callable(data) else data)  # type: ignore[arg-type]


_plain("empty", "empty", b"")
_plain("placeholder text", "placeholder-text", b"# Placeholder: the download of sd-v2.1-base-4view.pt failed\n")
_plain("a word", "placeholder-text", b"Entry not found")
_plain("a list of words", "placeholder-text", b"cats\nios\nandroid\nios\nsystem\n")
_plain("json error", "placeholder-text", b'{"error": "Repository not found"}')
_plain("html", "html-page", b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>")
_plain("html after blank lines", "html-page", b"\n\n  <HTML lang=en>" + b" " * 9000)
_plain("s3 error", "html-page", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
_plain("lfs pointer", "lfs-pointer", POINTER)
_plain("zeros", "zeros", bytes(100_000))
_plain("zip cut at half", "cut-off", lambda: saved(state())[:1200])
_plain("zip without its last byte", "cut-off", lambda: saved(state())[:-1])
_plain("zip whose tail is zeros", "cut-off", lambda: saved(state())[:1000] + bytes(200_000))
_plain("zip with a hole in its directory", "header-broken", lambda: (lambda d: d[:-300] + bytes(50) + d[-250:])(saved(state())))
_plain("legacy cut in its pickle", "cut-off", lambda: saved(state(), _use_new_zipfile_serialization=False)[:400])
_plain("legacy cut in its storages", "cut-off", lambda: saved(state(), _use_new_zipfile_serialization=False)[:-5])
_plain("legacy cut after the magic", "cut-off", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
_plain("safetensors cut in its header", "cut-off", safetensors_of(b'{"w":{"dtype":"F32"', b"", length=500), file="model.safetensors")
_plain("safetensors cut in its data", "cut-off", safetensors_of(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(9)))
_plain("safetensors of bad json", "header-broken", safetensors_of(b'{"w":{"dtype":"F32","shape":[4],}}  ', bytes(16)))
_plain("safetensors without offsets", "header-broken", safetensors_of(b'{"w":{"dtype":"F32","shape":[4]}}', bytes(16)))
_plain(
    "safetensors of another size", "size-mismatch", safetensors_of(b'{"w":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}', bytes(16))
)
_plain(
    "safetensors with negative shape",
    "header-broken",
    safetensors_of(b'{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', bytes(16)),
)
_plain("gguf cut", "cut-off", gguf_of([("w", [32], 0, 0)], bytes(100)), file="model.gguf")
_plain("gguf cut in its header", "cut-off", gguf_of([("w", [32], 0, 0)], b"")[:40], file="model.gguf")
_plain("gguf of no version", "header-broken", gguf_of([], b"", version=77))
_plain("onnx cut", "cut-off", onnx_of(onnx_tensor("w", [100], bytes(400)))[:-20], file="model.onnx")
_plain("onnx of another size", "size-mismatch", onnx_of(onnx_tensor("w", [100], bytes(8))), file="model.onnx")


def _torch(name: str, code: str) -> Callable[[Callable[[], bytes]], None]:
    def add(make: Callable[[], bytes]) -> None:
        case(f"broken: {name}", "broken", code, format="torch-zip")(lambda _: make())

    return add


@_torch("a storage is missing", "storage-missing")
def _() -> bytes:
    made = small()
    del made.storages["1"]
    return made.build()


@_torch("a storage is short", "storage-size")
def _() -> bytes:
    made = small()
    made.storages["0"] = made.storages["0"][:-4]
    return made.build()


@_torch("a view reaches outside its storage", "view-outside-storage")
def _() -> bytes:
    made = small()
    made.body = dict_of([(unicode("weight"), tensor("0", [4, 3], offset=1)), (unicode("bias"), tensor("1", [4]))])
    made.body = made.body.replace(integer(12) + b"tQ", integer(12) + b"tQ")
    return made.build()


@_torch("a stride reaches outside its storage", "view-outside-storage")
def _() -> bytes:
    made = small()
    made.body = dict_of([(unicode("weight"), tensor("0", [4, 3], numel=12, stride=[1000, 1])), (unicode("bias"), tensor("1", [4]))])
    return made.build()


@_torch("one storage with two types", "storage-conflict")
def _() -> bytes:
    made = small()
    made.body = dict_of([(unicode("weight"), tensor("0", [4, 3])), (unicode("bias"), tensor("0", [12], kind="IntStorage"))])
    return made.build()


@_torch("negative shape", "pickle-broken")
def _() -> bytes:
    made = small()
    made.body = dict_of([(unicode("weight"), tensor("0", [-4, 3], numel=12, stride=[3, 1]))])
    return made.build()


@_torch("pickle with a wrong checksum", "crc-mismatch")
def _() -> bytes:
    parts = small().parts()
    parts[0].crc = 12345
    return zip_of(parts)


@_torch("pickle cut short", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = parts[0].data[:-40]
    return zip_of(parts)


@_torch("pickle of noise", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = b"\x80\x02" + bytes(range(160, 250))
    return zip_of(parts)


@_torch("pickle that pops an empty stack", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = pickled(b"0000ss")
    return zip_of(parts)


@_torch("pickle that appends to a number", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = pickled(integer(1) + integer(2) + b"a")
    return zip_of(parts)


@_torch("tensor without a storage", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = pickled(name("torch._utils._rebuild_tensor_v2") + b"(K\x01K\x02K\x03K\x04tR")
    return zip_of(parts)


@_torch("values left behind", "pickle-broken")
def _() -> bytes:
    parts = small().parts()
    parts[0].data = pickled(small().body + small().body)
    return zip_of(parts)


@_torch("no record of the version", "header-broken")
def _() -> bytes:
    return zip_of([part for part in small().parts() if not part.name.endswith("/version")])


@_torch("encrypted", "encrypted")
def _() -> bytes:
    return zip_of([Part("archive/data.pkl", pickled(b"}"), flags=1)])


@_torch("entry count too high", "header-broken")
def _() -> bytes:
    data = bytearray(small().build())
    data[-14:-10] = struct.pack("<HH", 99, 99)
    return bytes(data)


@case("broken: a shard is missing", "broken", "shard-missing", file="model.safetensors.index.json")
def _(_: str) -> dict[str, bytes]:
    files = sharded()
    files.popitem()
    return files


@case("broken: the index names a tensor no shard has", "broken", "storage-missing", file="model.safetensors.index.json")
def _(_: str) -> dict[str, bytes]:
    files = sharded()
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


@case("broken: an index that names itself", "broken", "header-broken", file="model.safetensors.index.json")
def _(_: str) -> dict[str, bytes]:
    return {"model.safetensors.index.json": b'{"weight_map": {"w": "model.safetensors.index.json"}}'}
