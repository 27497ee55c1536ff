"""What changed between two weights files, tensor by tensor: from headers and checksums, or from the bytes where asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steelyard.checkpoint.inspection import Inspection, TensorInfo

SameBytes = Callable[[TensorInfo, TensorInfo], bool | None]
"""Compares the values of two tensors of one shape and dtype; None where it can't tell (see `deep_compare.same_bytes`)."""

_SD_PARTS: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.", "unet"), ("unet.", "unet"), ("model_ema.", "unet (moving average)"),
    ("first_stage_model.", "vae"), ("vae.", "vae"),
    ("cond_stage_model.", "text encoder"), ("conditioner.", "text encoder"), ("text_encoder", "text encoder"),
    ("control_model.", "controlnet"), ("lora_unet", "lora (unet)"), ("lora_te", "lora (text encoder)"),
)  # fmt: skip
"""Prefixes of Stable Diffusion checkpoints (LDM and diffusers), and what users call those parts."""


@dataclass(frozen=True, slots=True)
class PartDiff:
    """One part of the model: how many tensors and bytes (of the newer file) it has and how many differ."""

    part: str
    tensors: int
    nbytes: int
    added: int
    removed: int
    reshaped: int
    retyped: int
    changed: int | None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """Names by what happened to them, from the first file to the second.

    *changed* are tensors of unchanged shape and dtype whose values differ; None when that is unknown for all. *unknown* are those whose
    values could not be compared. A tensor may be reshaped and retyped; it is then not listed as changed.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reshaped: tuple[str, ...]
    retyped: tuple[str, ...]
    changed: tuple[str, ...] | None
    unknown: tuple[str, ...]
    unchanged: int
    parts: tuple[PartDiff, ...]
    details: dict[str, str]
    """For reshaped and retyped tensors: "320x4x3x3 float16 → 320x8x3x3 float16"."""

    @property
    def same(self) -> bool | None:
        """Whether both hold the same weights; None when some values are unknown and nothing else differs."""
        if self.added or self.removed or self.reshaped or self.retyped or self.changed:
            return False
        return None if self.unknown else True

    def as_json(self) -> dict[str, Any]:
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "reshaped": list(self.reshaped),
            "retyped": list(self.retyped),
            "changed": None if self.changed is None else list(self.changed),
            "unknown": len(self.unknown),
            "unchanged": self.unchanged,
            "parts": [part.as_json() for part in self.parts],
            "details": dict(self.details),
        }


def part_of(name: str) -> str:
    """The part of a model a tensor belongs to, by its name: "unet", "vae", "text encoder", else the name's first component."""
    for prefix, part in _SD_PARTS:
        if name.startswith(prefix):
            return part
    return name.partition(".")[0]


def compare(before: Inspection, after: Inspection, *, same_bytes: SameBytes | None = None) -> TensorDiff:
    """The difference from *before* to *after*, from what the two inspections tell.

    Values are compared by the zip's CRC-32 of each tensor's storage where both files have one: equal bytes give equal CRCs, and two
    different storages of one size agree by chance once in 2**32. Where that does not decide, *same_bytes* is asked if given.
    """
    old = {tensor.name: tensor for tensor in before.tensors}
    new = {tensor.name: tensor for tensor in after.tensors}
    reshaped, retyped, changed, unknown = [], [], [], []
    details: dict[str, str] = {}
    unchanged = 0
    for name in (name for name in old if name in new):
        a, b = old[name], new[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            details[name] = f"{_shape(a)} → {_shape(b)}"
            if a.shape != b.shape:
                reshaped.append(name)
            if a.dtype != b.dtype:
                retyped.append(name)
            continue
        same = same_by_crc(a, b)
        if same is None and same_bytes is not None:
            same = same_bytes(a, b)
        if same is None:
            unknown.append(name)
        elif same:
            unchanged += 1
        else:
            changed.append(name)
    added = [name for name in new if name not in old]
    removed = [name for name in old if name not in new]
    all_unknown = bool(unknown) and not changed and not unchanged
    groups = {"added": added, "removed": removed, "reshaped": reshaped, "retyped": retyped, "changed": changed}
    return TensorDiff(
        tuple(added), tuple(removed), tuple(reshaped), tuple(retyped), None if all_unknown else tuple(changed), tuple(unknown), unchanged,
        _parts(old, new, groups, set(unknown)), details,
    )  # fmt: skip


def same_by_crc(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Whether two tensors of one shape and dtype hold the same values, by their storages' checksums; None when those can't tell."""
    if a.numel == 0:
        return True
    if a.crc32 is None or b.crc32 is None:
        return None
    same_layout = (a.storage_offset, a.storage_nbytes, a.stride) == (b.storage_offset, b.storage_nbytes, b.stride)
    if a.crc32 == b.crc32 and same_layout:
        return True
    if a.whole_storage and b.whole_storage and a.contiguous and b.contiguous:
        return a.crc32 == b.crc32
    return None  # a view into a larger storage: something there changed, perhaps not this tensor


def _shape(tensor: TensorInfo) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"


def _parts(old: dict[str, TensorInfo], new: dict[str, TensorInfo], groups: dict[str, list[str]], unknown: set[str]) -> tuple[PartDiff, ...]:
    counts: dict[str, dict[str, int]] = {}
    for kind, names in groups.items():
        for name in names:
            row = counts.setdefault(part_of(name), {})
            row[kind] = row.get(kind, 0) + 1
    sizes: dict[str, list[int]] = {}
    for name in new:
        row_sizes = sizes.setdefault(part_of(name), [0, 0])
        row_sizes[0] += 1
        row_sizes[1] += new[name].nbytes
    for name in old:
        sizes.setdefault(part_of(name), [0, 0])
    unsure = {part_of(name) for name in unknown}
    return tuple(
        PartDiff(
            part, tensors, nbytes, row.get("added", 0), row.get("removed", 0), row.get("reshaped", 0), row.get("retyped", 0),
            None if part in unsure and not row.get("changed") else row.get("changed", 0),
        )
        for part, (tensors, nbytes) in sizes.items()
        for row in (counts.get(part, {}),)
    )  # fmt: skip
