"""A safetensors file: eight bytes with the header's length, a JSON header, then nothing but tensor bytes.

Judged as strictly as the reference implementation does (safetensors, tensor.rs, Metadata::validate): offsets in order, no hole, no overlap,
and the last tensor ends with the file.
"""

from __future__ import annotations

import json
import math
from typing import Any

from steelyard.checkpoint.dtypes import SAFETENSORS_DTYPE
from steelyard.checkpoint.inspection import TensorInfo
from steelyard.checkpoint.reader import RangeReader
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.tensors import MAX_NAME, Findings

FORMAT_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; beyond it no reader goes."""
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 100_000


def read_safetensors(reader: RangeReader) -> tuple[tuple[TensorInfo, ...], dict[str, Any], list[Reason]]:
    """(tensors in the file's order, the header's __metadata__, reasons).

    :raises NotWeights: when the header can't be read at all.
    """
    length = int.from_bytes(reader.read(0, 8), "little")
    if length > FORMAT_MAX_HEADER_BYTES:
        raise NotWeights("header-bomb", f"it claims a header of {length} bytes; the format allows {FORMAT_MAX_HEADER_BYTES}")
    if 8 + length > reader.size_bytes:
        raise NotWeights("cut-off", f"the file ends inside its header, which should have {length} bytes")
    if length > MAX_HEADER_BYTES:
        raise NotWeights("header-too-big", f"a header of {length} bytes; more than {MAX_HEADER_BYTES} are not looked into")
    header = parse_json(reader.read(8, length), "header-broken", "header")
    if not isinstance(header, dict):
        raise NotWeights("header-broken", "its header is no JSON object")
    findings = Findings()
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        findings.add("header-broken", "its __metadata__ is no map of texts")
        metadata = {}
    start = 8 + length
    tensors = tuple(_tensor(name, entry, start, findings) for name, entry in header.items())
    _check_layout(tensors, start, reader.size_bytes, findings)
    shown_metadata = {shown(key, 80): shown(value, 200) for key, value in list(metadata.items())[:50]}
    return tensors, shown_metadata, findings.reasons()


def parse_json(data: bytes, code: Any, what: str) -> Any:
    """*data* as JSON with bounds and without repeated keys.

    :raises NotWeights: *code* for what is no JSON, "header-bomb" for what would blow up, "duplicate-name" for a key given twice.
    """
    # Each bracket and each string becomes a Python object of 50 to 200 bytes; counting them first costs nothing.
    if data.count(b"{") > MAX_TENSORS + 8 or data.count(b"[") > 2 * MAX_TENSORS + 8 or data.count(b'"') > 12 * MAX_TENSORS:
        raise NotWeights("header-bomb", f"its {what} holds more objects than {MAX_TENSORS} tensors would need")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_bounded_int)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise NotWeights(code, f"its {what} is no JSON that can be read ({type(error).__name__})") from error


def _bounded_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number of more than 20 digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotWeights("duplicate-name", f"{shown(twice)} is there twice: readers would differ", shown(twice))
    return found


def _tensor(name: str, entry: Any, start: int, findings: Findings) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        findings.add("header-broken", f"{shown(name)} lacks dtype, shape or data_offsets", shown(name))
        return TensorInfo(name, (), "unknown", 0)
    numbers = [begin, end, *(shape if isinstance(shape, list) else [None])]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or end < begin or len(numbers) > 66:
        findings.add("header-broken", f"{shown(name)} has a shape or offsets that can't be", shown(name))
        return TensorInfo(name, (), "unknown", 0)
    if len(name) > MAX_NAME or not name.isprintable():
        findings.add("odd-name", f"a tensor is called {shown(name)!r}", shown(name))
    known = SAFETENSORS_DTYPE.get(dtype) if isinstance(dtype, str) else None
    if known is None:
        findings.add("unknown-dtype", f"{shown(name)} is of dtype {shown(str(dtype))}, whose size is not known", shown(name))
        return TensorInfo(name, tuple(shape), shown(str(dtype)), end - begin, offset=start + begin)
    bits = math.prod(shape) * known[1]
    if bits != (end - begin) * 8:
        findings.add("size-mismatch", f"{shown(name)} has {end - begin} bytes where its shape needs {bits / 8:g}", shown(name))
    return TensorInfo(name, tuple(shape), known[0], end - begin, offset=start + begin, storage=name, storage_nbytes=end - begin)


def _check_layout(tensors: tuple[TensorInfo, ...], start: int, size: int, findings: Findings) -> None:
    at = start
    for tensor in sorted((t for t in tensors if t.offset is not None), key=lambda t: (t.offset, t.nbytes)):
        assert tensor.offset is not None
        if tensor.offset < at:
            findings.add("overlapping-entries", f"{shown(tensor.name)} shares bytes with another tensor", shown(tensor.name))
        elif tensor.offset > at:
            findings.add("hidden-bytes", f"{tensor.offset - at} bytes before {shown(tensor.name)} belong to no tensor", shown(tensor.name))
        at = max(at, tensor.offset + tensor.nbytes)
    if at > size:
        findings.add("cut-off", f"the file has {size} bytes where its tensors need {at}")
    elif at < size:
        findings.add("trailing-bytes", f"{size - at} bytes follow the last tensor")
