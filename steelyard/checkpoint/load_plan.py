"""What the load check's child is to prove, worked out from the header before it starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from steelyard.checkpoint.inspection import Inspection, TensorInfo
from steelyard.checkpoint.reasons import ReasonCode

OVERHEAD_BYTES = 320 * 1024 * 1024
"""torch itself (210 to 260 MiB resident after import) and the buffers of the value scan."""
CUDA_CONTEXT_BYTES = 700 * 1024 * 1024


class LoadFailure(Exception):
    """How the child says no: the report's verdict, a reason's code and its sentence. Here, since the child's own module is __main__."""

    def __init__(self, verdict: str, code: ReasonCode, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.code = code


def may_map(inspection: Inspection) -> bool:
    """Mapping the file is safe only where the container was found to be exactly as torch.save lays it out."""
    if inspection.format == "safetensors":
        return True
    return inspection.format == "torch-zip" and not {"compressed-storage", "unaligned-storage", "big-endian", "hidden-bytes"} & set(
        inspection.codes
    )


def memory_need(inspection: Inspection, *, mapped: bool) -> int:
    """Bytes of RAM that the check will take: mapped, the tensors stay on the disk."""
    return OVERHEAD_BYTES + (0 if mapped else sum(storage.nbytes for storage in inspection.storages))


def vram_need(inspection: Inspection) -> int:
    return CUDA_CONTEXT_BYTES + inspection.tensor_bytes


def names_digest(rows: Iterable[tuple[str, Iterable[int], str]]) -> str:
    """SHA-256 over (name, shape, dtype), sorted by name: one line each, "name\\tshape\\tdtype"."""
    digest = hashlib.sha256()
    for name, shape, dtype in sorted((name, tuple(shape), dtype) for name, shape, dtype in rows):
        digest.update(f"{name}\t{'x'.join(map(str, shape))}\t{dtype}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def plan(inspection: Inspection, *, path: str, device: str, allow_globals: frozenset[str], mapped: bool) -> dict[str, Any]:
    """The request to the child, as JSON: what to open, what must be found, which bytes to read and check."""
    return {
        "path": path,
        "format": inspection.format,
        "device": device,
        "mmap": mapped,
        "allow": sorted(allow_globals),
        "weights_path": list(inspection.weights_path),
        "expected": {
            "tensors": len(inspection.tensors),
            "digest": names_digest((t.name, t.shape, t.dtype) for t in inspection.tensors),
        },
        "vram_need": vram_need(inspection),
        "tensors": [_row(tensor) for tensor in inspection.tensors] if inspection.format in ("safetensors", "torchscript") else [],
        "storages": _storages(inspection),
    }


def _row(tensor: TensorInfo) -> list[Any]:
    return [tensor.name, list(tensor.shape), tensor.dtype, tensor.offset, tensor.nbytes]


def _storages(inspection: Inspection) -> list[dict[str, Any]]:
    """Every storage with the tensors of the weights inside it as byte ranges; storages of other things are read for their CRC alone."""
    inside: dict[str, list[list[Any]]] = {}
    dtypes: dict[str, str] = {}
    for tensor in inspection.tensors:
        if tensor.storage is None or not tensor.numel:
            continue
        item = tensor.nbytes // tensor.numel
        begin = tensor.storage_offset * item
        inside.setdefault(tensor.storage, []).append([tensor.name, begin, begin + tensor.span_nbytes])
        dtypes.setdefault(tensor.storage, tensor.dtype)
    return [
        {
            "key": s.key,
            "offset": s.offset,
            "nbytes": s.nbytes,
            "crc32": s.crc32,
            "dtype": dtypes.get(s.key),
            "tensors": inside.get(s.key, []),
        }
        for s in inspection.storages
        if s.nbytes and s.offset is not None and not s.compressed
    ]
