"""Files that are odd, need more than a state dict needs, or are something else altogether."""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import pathlib
import pickle
import struct
import tarfile
import zipfile

import torch

from .assemble import Part, call, dict_of, name, pickled, safetensors_of, small, tensor, unicode, with_payload, zip_of
from .corpus import case
from .corpus_good import saved, state


def _zip(title: str, verdict: str, code: str, data: bytes, format: str = "torch-zip") -> None:
    case(f"{verdict}: {title}", verdict, code, format=format)(lambda _: data)


# suspect: odd, not dangerous
def _compressed() -> bytes:
    parts = small().parts()
    parts[2].method = 8
    return zip_of(parts)


def _unaligned() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for part in small().parts():
            archive.writestr(part.name, part.data)
    return out.getvalue()


def _big_endian() -> bytes:
    parts = small().parts()
    parts[1].data = b"big"
    return zip_of(parts)


def _gap() -> bytes:
    parts = small().parts()
    parts[3].gap = b"#!/bin/sh\necho hidden between two entries\n"
    return zip_of(parts)


def _foreign(part: Part) -> bytes:
    return zip_of([*small().parts(), part])


_zip("compressed storage", "suspect", "compressed-storage", _compressed())
_zip("written by another zip tool", "suspect", "unaligned-storage", _unaligned())
_zip("big endian", "suspect", "big-endian", _big_endian())
_zip("bytes between entries", "suspect", "hidden-bytes", _gap())
_zip("bytes before the directory", "suspect", "hidden-bytes", zip_of(small().parts(), before_directory=b"x" * 100))
_zip("bytes after the zip", "suspect", "trailing-bytes", zip_of(small().parts(), after=b"tail"))
_zip("a comment", "suspect", "zip-comment", zip_of(small().parts(), comment=b"made by someone"))
_zip("a readme inside", "suspect", "foreign-entry", _foreign(Part("archive/README.txt", b"hello")))
_zip("an entry outside the archive's folder", "suspect", "foreign-entry", _foreign(Part("elsewhere/x.bin", b"hello")))
_zip("a storage nobody names", "suspect", "unreferenced-storage", _foreign(Part("archive/data/99", bytes(64))))
_zip("a meta tensor", "suspect", "meta-tensor", saved({"w": torch.zeros(3, device="meta"), "x": torch.ones(2)}))
_zip("no tensors at all", "suspect", "no-tensors", saved({"epoch": 3}))
_zip("a control character in a name", "suspect", "odd-name", saved({"w\x1b[31m": torch.ones(2)}))
_zip("bytes after the pickle", "suspect", "hidden-bytes", zip_of([Part("a/data.pkl", small().parts()[0].data + b"more"), *[
    Part(p.name.replace("archive", "a"), p.data) for p in small().parts()[1:]]]))  # fmt: skip
_zip(
    "legacy with bytes after it",
    "suspect",
    "trailing-bytes",
    saved(state(), _use_new_zipfile_serialization=False) + b"tail",
    "torch-legacy",
)
_zip("safetensors with bytes after it", "suspect", "trailing-bytes", safetensors_of(
    b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(20)), "safetensors")  # fmt: skip
_zip("safetensors with a hole", "suspect", "hidden-bytes", safetensors_of(
    b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}', bytes(24)), "safetensors")  # fmt: skip


def _old_dtype() -> bytes:
    made = small()
    made.body = dict_of([(unicode("w"), tensor("0", [12], kind="FutureStorage"))])
    return made.build()


# untrusted: needs names that no state dict needs
_zip("a whole module", "untrusted", "unknown-global", saved(torch.nn.Linear(2, 2)))
_zip("argparse.Namespace", "untrusted", "unknown-global", saved({"args": argparse.Namespace(lr=1), "model": state()}))
_zip("a path", "untrusted", "unknown-global", saved({"where": pathlib.PurePosixPath("/x"), "model": state()}))
_zip("a partial", "untrusted", "unknown-global", saved({"schedule": functools.partial(round, ndigits=2), "model": state()}))
_zip("numpy scalar", "untrusted", "unknown-global", with_payload(call("numpy.core.multiarray.scalar", name("numpy.dtype"), unicode("f8"))))
_zip(
    "lightning callback", "untrusted", "unknown-global", with_payload(name("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"))
)
_zip("a storage type of the future", "untrusted", "unknown-global", _old_dtype())
_zip("calls the result of a call", "untrusted", "calls-a-value", with_payload(name("collections.OrderedDict") + b")R(K\x01tR"))


@case("untrusted: torchscript", "untrusted", "torchscript-code", format="torchscript")
def _(_: str) -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), out)
    return out.getvalue()


@case("untrusted: legacy with a module's source", "untrusted", "unknown-global", format="torch-legacy")
def _(_: str) -> bytes:
    return saved(torch.nn.Linear(2, 2), _use_new_zipfile_serialization=False)


# unsupported: real, but nothing we judge
def _npz() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00")
    return out.getvalue()


def _plain_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("docs/readme.txt", "hello")
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def _many_entries() -> bytes:
    return zip_of([Part(f"a/data/{i}", b"", align=False) for i in range(60_000)])


def _long_pickle() -> bytes:
    return zip_of([Part("a/data.pkl", pickled(b"](" + b"N" * 3_000_000 + b"e")), Part("a/version", b"3\n")])


def _other(title: str, code: str, data: bytes) -> None:
    case(f"unsupported: {title}", "unsupported", code)(lambda _: data)


_other("npy", "numpy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}" + bytes(100))


def _torch_package() -> bytes:
    """As torch.package lays it out: a pickle by its resource's name, sources, and no data.pkl."""
    parts = {
        ".data/version": b"6\n",
        ".data/extern_modules": b"torch\n",
        ".data/0.storage": bytes(16),
        "m/model.pkl": b"\x80\x03N.",
        "m.py": b"",
    }
    return zip_of([Part(f"pkg/{name}", data) for name, data in parts.items()])


case("untrusted: a torch.package archive", "untrusted", "torch-package", format="unknown")(lambda _: _torch_package())


@case("untrusted: a tensor by pickle.dump", "untrusted", "unknown-global", format="unknown")
def _(_: str) -> bytes:
    return pickle.dumps({"w": torch.ones(3), "b": torch.zeros(2)})


@case("hostile: a pickle.dump whose inner storage is code", "hostile", "dangerous-global")
def _(command: str) -> bytes:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            import os

            return os.system, (command,)

    inner = io.BytesIO()
    torch.save(Code(), inner, _use_new_zipfile_serialization=False)

    class Storage:
        def __reduce__(self) -> tuple[object, ...]:
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    return pickle.dumps({"w": Storage()})


case("unsupported: legacy with untyped storages", "unsupported", "no-loader", format="torch-legacy")(
    lambda _: saved({"w": torch.ones(8).to(torch.float8_e4m3fn)}, _use_new_zipfile_serialization=False)
)
_other("npz", "numpy", _npz())
_other("gzip", "archive", gzip.compress(b"weights"))
_other("tar", "torch-tar", _tar())
_other("hdf5", "other-format", b"\x89HDF\r\n\x1a\n" + bytes(100))
_other("a picture", "other-format", b"\x89PNG\r\n\x1a\n" + bytes(100))
_other("an empty zip", "plain-zip", zip_of([]))
_other("a plain zip", "plain-zip", _plain_zip())
_other("a pickle of numbers", "plain-pickle", pickle.dumps({"a": [1, 2, 3]}))
_other("noise", "unknown-format", bytes((i * 7919 + 13) % 251 for i in range(5000)))
_other("too many entries", "too-many-entries", _many_entries())
_other("a pickle of three million steps", "pickle-too-long", _long_pickle())
_other("gguf version 1", "unknown-version", b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
_other(
    "safetensors of an unknown dtype", "unknown-dtype", safetensors_of(b'{"w":{"dtype":"F12","shape":[4],"data_offsets":[0,6]}}', bytes(6))
)
_other("pickle protocol 4", "pickle-opcode", saved(state(), pickle_protocol=4))
