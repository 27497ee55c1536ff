"""A model's signature, its tensors' names, shapes and dtypes, and what a strict load_state_dict would say of other weights: from headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steelyard.checkpoint.inspection import Inspection
from steelyard.checkpoint.load_plan import names_digest

FitVerdict = Literal["fits", "does-not-fit", "unknown"]


@dataclass(frozen=True, slots=True)
class TensorShape:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Signature:
    """What a program expects of a model's weights; *digest* is SHA-256 over the sorted rows (see `names_digest`)."""

    tensors: tuple[TensorShape, ...]
    digest: str
    weights_key: str | None = None
    """Where in the file the program looks for them: a dotted path, "" for the top; None where that is not known."""

    def as_json(self) -> dict[str, Any]:
        rows = [[t.name, list(t.shape), t.dtype] for t in self.tensors]
        return {"digest": self.digest, "weights_key": self.weights_key, "tensors": rows}


@dataclass(frozen=True, slots=True)
class Fit:
    """What a strict load_state_dict would say. *retyped* is no obstacle: values are cast on copy; it is told because results may differ."""

    verdict: FitVerdict
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    moved: tuple[str, str] | None = None
    """Where the program looks for the weights and where they are now, when those differ; "" is the top."""
    sentence: str = ""

    @property
    def compatible(self) -> bool | None:
        """True, False, or None where the header could not be read."""
        return {"fits": True, "does-not-fit": False, "unknown": None}[self.verdict]

    def as_json(self) -> dict[str, Any]:
        return {
            "compatible": self.compatible,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "reshaped": list(self.reshaped),
            "retyped": list(self.retyped),
            "moved": list(self.moved) if self.moved else None,
            "sentence": self.sentence,
        }


def signature(inspection: Inspection) -> Signature:
    return _signed((TensorShape(t.name, t.shape, t.dtype) for t in inspection.tensors), inspection.weights_key or "")


def signature_of(state_dict: Mapping[str, Any]) -> Signature:
    """The signature that a program's own module asks for: its `state_dict()`, or any mapping of names to what has a shape and a dtype."""
    rows = ((str(name), held) for name, held in state_dict.items() if hasattr(held, "shape") and hasattr(held, "dtype"))
    return _signed(TensorShape(name, tuple(map(int, held.shape)), str(held.dtype).removeprefix("torch.")) for name, held in rows)


def signature_from_json(value: Any) -> Signature:
    """Read back `Signature.as_json`.

    :raises ValueError: when it is not one, or its digest is not that of its rows.
    """
    try:
        key = value.get("weights_key")
        found = _signed(
            (TensorShape(str(name), tuple(int(extent) for extent in shape), str(dtype)) for name, shape, dtype in value["tensors"]),
            None if key is None else str(key),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no signature") from error
    if found.digest != value.get("digest"):
        raise ValueError("a signature whose digest is not that of its rows")
    return found


def _signed(rows: Iterable[TensorShape], weights_key: str | None = None) -> Signature:
    tensors = tuple(sorted(rows, key=lambda row: row.name))
    return Signature(tensors, names_digest((row.name, row.shape, row.dtype) for row in tensors), weights_key)


def fits(expected: Signature, found: Inspection) -> Fit:
    """Whether a program that loaded weights of *expected* by strict load_state_dict can load those of *found*."""
    if found.verdict in ("broken", "unsupported") or not found.tensors:
        return Fit("unknown", sentence="its tensors could not be read")
    here = found.weights_key or ""
    moved = (expected.weights_key, here) if expected.weights_key is not None and expected.weights_key != here else None
    old: Mapping[str, TensorShape] = {row.name: row for row in expected.tensors}
    new: Mapping[str, TensorShape] = {t.name: TensorShape(t.name, t.shape, t.dtype) for t in found.tensors}
    missing = tuple(name for name in old if name not in new)
    unexpected = tuple(name for name in new if name not in old)
    both = [name for name in old if name in new]
    reshaped = tuple(name for name in both if old[name].shape != new[name].shape)
    retyped = tuple(name for name in both if old[name].dtype != new[name].dtype)
    if not (missing or unexpected or reshaped or moved):
        return Fit(
            "fits", retyped=retyped, sentence="strict load_state_dict takes it" + (f"; {len(retyped)} tensors are cast" if retyped else "")
        )
    told = [
        f"{len(names)} {word}"
        for names, word in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
        if names
    ]
    refused = f"strict load_state_dict refuses it: {', '.join(told)}{_prefix_hint(missing, unexpected)}" if told else ""
    elsewhere = f"the weights lie {_place(moved[1])} now, where the program looks {_place(moved[0])}" if moved else ""
    sentence = "; ".join(part for part in (refused, elsewhere) if part)
    return Fit("does-not-fit", missing, unexpected, reshaped, retyped, moved, sentence)


def _place(key: str) -> str:
    return f"under {key!r}" if key else "at the top"


def _prefix_hint(missing: tuple[str, ...], unexpected: tuple[str, ...]) -> str:
    """The most common cause of a misfit: every name gained or lost one prefix ("module.", "model.")."""
    if not missing or len(missing) != len(unexpected):
        return ""
    for shorter, longer, word in ((missing, unexpected, "gained"), (unexpected, missing, "lost")):
        first = next((name for name in longer if name.endswith("." + shorter[0])), "")
        prefix = first.removesuffix(shorter[0])
        if prefix and {prefix + name for name in shorter} == set(longer):
            return f"; every name has {word} the prefix {prefix!r}"
    return ""
