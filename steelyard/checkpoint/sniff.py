"""What a file is, told from its bytes; its name is never asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from steelyard.checkpoint.pickle_walk import Truncated, walk
from steelyard.checkpoint.reasons import NotWeights, ReasonCode, shown

Kind = Literal["zip", "legacy", "pickle", "safetensors", "gguf", "onnx", "index"]
"""What to read the file as; "index" is the JSON that names the shards of a set."""

_LFS = b"version https://git-lfs.github.com/spec/"
_OTHERS: tuple[tuple[bytes, ReasonCode, str], ...] = (
    (b"\x93NUMPY", "numpy", "a numpy array (.npy), not a checkpoint"),
    (b"\x1f\x8b", "archive", "gzip data: unpack it first"),
    (b"BZh", "archive", "bzip2 data: unpack it first"),
    (b"\xfd7zXZ\x00", "archive", "xz data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "archive", "zstd data: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "archive", "a 7z archive: unpack it first"),
    (b"Rar!", "archive", "a RAR archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "other-format", "an HDF5 file (Keras weights), which torch does not read"),
    (b"\x89PNG", "other-format", "a PNG picture"),
    (b"\xff\xd8\xff", "other-format", "a JPEG picture"),
    (b"%PDF", "other-format", "a PDF document"),
    (b"\x7fELF", "other-format", "a program (ELF)"),
    (b"MZ", "other-format", "a program (Windows)"),
    (b"SQLite format 3\x00", "other-format", "an SQLite database"),
    (b"TFL3", "other-format", "a TensorFlow Lite model"),
    (b"ggml", "other-format", "a GGML file from before GGUF"),
    (b"lmgg", "other-format", "a GGML file from before GGUF"),
    (b"tjgg", "other-format", "a GGML file from before GGUF"),
    (b"fmgg", "other-format", "a GGML file from before GGUF"),
)
_TEXT_OPCODES = tuple(bytes([code]) for code in b"(c]})lditSVUXIFLNKJMTGq")
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, slots=True)
class Sniffed:
    kind: Kind


def sniff(head: bytes, size_bytes: int) -> Sniffed:
    """What the file that begins with *head* is to be read as.

    :raises NotWeights: when it is no weights file (text, an HTML page, an LFS pointer, empty, …) or one we do not read.
    """
    if size_bytes == 0:
        raise NotWeights("empty", "the file is empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Sniffed("zip")
    if head.startswith(b"GGUF"):
        return Sniffed("gguf")
    if head.startswith(_LEGACY_MAGIC):
        return Sniffed("legacy")
    if _is_safetensors(head, size_bytes):
        # Asked before the pickle: a header of 640 bytes begins with 80 02, as a pickle of protocol 2 does. No file can be both, since
        # the zeros of the length are no opcodes.
        return Sniffed("safetensors")
    if len(head) >= 2 and head[0] == 0x80 and head[1] <= 5:
        return Sniffed("pickle")
    if head.startswith(_LFS):
        raise NotWeights("lfs-pointer", _pointer(head))
    for magic, code, sentence in _OTHERS:
        if head.startswith(magic):
            raise NotWeights(code, sentence)
    if head[257:262] == b"ustar":
        raise NotWeights("torch-tar", "a tar archive; torch's own tar format (before 0.1.10) is not loaded safely by any torch")
    if _is_text_pickle(head):
        return Sniffed("pickle")
    if _is_onnx(head):
        return Sniffed("onnx")
    if not head.strip(b"\0"):
        raise NotWeights("zeros", "it begins with zeros only: space was reserved and never filled")
    return _text(head, size_bytes)


def _is_safetensors(head: bytes, size_bytes: int) -> bool:
    if len(head) < 9:
        return False
    length = int.from_bytes(head[:8], "little")
    # The header begins with "{" by the format. A length beyond the file is a safetensors file cut off, if what follows reads like one.
    return head[8:9] == b"{" and length >= 2 and (length + 8 <= size_bytes or length < 2**40 or b"data_offsets" in head)


def _is_onnx(head: bytes) -> bool:
    """A ModelProto begins with ir_version (field 1, varint), and its other fields follow in order."""
    if len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] <= 30:
        return False
    return head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _is_text_pickle(head: bytes) -> bool:
    """Whether what looks like text is a pickle of protocol 0 or 1 that calls something; it has no magic, so it is walked."""
    if head[:1] not in _TEXT_OPCODES:
        return False
    try:
        walked = walk(head[:65536], max_opcodes=20_000, beyond=False)
    except Truncated:
        return False
    return (walked.complete and bool(walked.globals)) or "dangerous" in walked.globals.values()


def _pointer(head: bytes) -> str:
    size = re.search(rb"^size (\d{1,20})$", head, re.MULTILINE)
    told = f" for a file of {int(size[1])} bytes" if size else ""
    return f"a Git LFS pointer{told}: the weights themselves were never fetched"


def _text(head: bytes, size_bytes: int) -> Sniffed:
    start = head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = start[:512].lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in lower:
        raise NotWeights("html-page", "an HTML page was saved in place of the weights: a login, an error or a landing page")
    if lower.startswith((b"<?xml", b"<error")):
        raise NotWeights("html-page", "an XML answer was saved in place of the weights: " + _excerpt(start))
    try:
        text = head[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < 4000 or len(head) < 4096:
            raise NotWeights("unknown-format", "no weights format that we know") from error
        text = head[: error.start].decode("utf-8")
    if not all(c.isprintable() or c in "\t\r\n\f" for c in text):
        raise NotWeights("unknown-format", "no weights format that we know")
    if start.startswith(b"{") and b'"weight_map"' in head:
        return Sniffed("index")
    raise NotWeights("placeholder-text", f"text of {size_bytes} bytes in place of the weights: {_excerpt(start)}")


def _excerpt(start: bytes) -> str:
    return "“" + shown(" ".join(start[:200].decode("utf-8", "replace").split()), 60) + "”"
