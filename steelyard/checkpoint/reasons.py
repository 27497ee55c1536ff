"""Every reason a checkpoint can be judged by: a code, the verdict it leads to, one human sentence.

The table below is the whole policy: what is dangerous, what is damaged, what is merely odd stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["ok", "broken", "hostile", "untrusted", "suspect", "unsupported"]

ReasonCode = Literal[
    # tries to execute or to deceive
    "dangerous-global",
    "duplicate-data-pkl",
    "foreign-pickle",
    "duplicate-entry",
    "duplicate-name",
    "escaping-name",
    "header-mismatch",
    "overlapping-entries",
    "polyglot",
    "zip-bomb",
    "pickle-bomb",
    "header-bomb",
    "expanded-view",
    "extension-registry",
    "second-directory",
    # damaged, cut, or no weights at all
    "empty",
    "placeholder-text",
    "html-page",
    "lfs-pointer",
    "zeros",
    "cut-off",
    "crc-mismatch",
    "digest-mismatch",
    "pickle-broken",
    "header-broken",
    "storage-missing",
    "storage-size",
    "storage-conflict",
    "view-outside-storage",
    "size-mismatch",
    "shard-missing",
    "encrypted",
    # needs more than a state dict needs
    "unknown-global",
    "torchscript-code",
    "torch-package",
    "calls-a-value",
    "module-source",
    # odd, not dangerous
    "compressed-storage",
    "foreign-entry",
    "hidden-bytes",
    "trailing-bytes",
    "unaligned-storage",
    "big-endian",
    "zip-comment",
    "unreferenced-storage",
    "odd-name",
    "meta-tensor",
    "no-tensors",
    "unlisted-tensor",
    # real, but beyond what we judge
    "pickle-too-big",
    "pickle-opcode",
    "pickle-too-long",
    "too-many-entries",
    "header-too-big",
    "plain-pickle",
    "plain-zip",
    "torch-export",
    "torch-tar",
    "numpy",
    "archive",
    "other-format",
    "unknown-format",
    "unknown-version",
    "unknown-dtype",
    "external-data",
    "shards-unseen",
    "too-many-requests",
    "not-understood",
    "torch-missing",
    "cuda-missing",
    "no-loader",
    # the load check's own
    "values-not-finite",
    "load-failed",
    "tensors-differ",
    "bytes-differ",
    "child-died",
    "timeout",
    "memory-need",
    "vram-need",
    "memory-limit",
    # remarks that change no verdict
    "zero-tensors",
    "not-mapped",
    "crc-absent",
    "headers-inferred",
    "allowed-global",
]
"""Stable words that scripts may match on; the sentences may change."""

_ORDER: tuple[Verdict, ...] = ("ok", "suspect", "unsupported", "untrusted", "broken", "hostile")

_GROUPS: tuple[tuple[Verdict, ReasonCode, ReasonCode], ...] = (
    ("hostile", "dangerous-global", "second-directory"),
    ("broken", "empty", "encrypted"),
    ("untrusted", "unknown-global", "module-source"),
    ("suspect", "compressed-storage", "unlisted-tensor"),
    ("unsupported", "pickle-too-big", "no-loader"),
    ("broken", "values-not-finite", "timeout"),
    ("unsupported", "memory-need", "memory-limit"),  # the load check itself says too-big
    ("ok", "zero-tensors", "allowed-global"),
)
"""Every code stands between the first and the last of one group."""


def _spread() -> dict[str, Verdict]:
    codes = get_args(ReasonCode)
    table: dict[str, Verdict] = {}
    for verdict, first, last in _GROUPS:
        for code in codes[codes.index(first) : codes.index(last) + 1]:
            table[code] = verdict
    return table


VERDICT_OF: dict[str, Verdict] = _spread()


@dataclass(frozen=True, slots=True)
class Reason:
    """One finding: a stable *code*, a sentence for people, and where in the file it was seen (an entry, a tensor, an offset)."""

    code: ReasonCode
    message: str
    where: str = ""

    @property
    def verdict(self) -> Verdict:
        return VERDICT_OF[self.code]

    def as_json(self) -> dict[str, str]:
        row = {"code": self.code, "message": self.message}
        return {**row, "where": self.where} if self.where else row


class NotWeights(Exception):
    """Raised inside this package where reading on makes no sense; `inspect` turns it into the reason it carries."""

    def __init__(self, code: ReasonCode, message: str, where: str = "") -> None:
        super().__init__(message)
        self.reason = Reason(code, message, where)


def worst_verdict(reasons: Iterable[Reason]) -> Verdict:
    """The gravest verdict among *reasons*; "ok" when there is none. Danger outranks damage, damage outranks distrust."""
    return max((reason.verdict for reason in reasons), key=_ORDER.index, default="ok")


def ranked(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Gravest first, each once."""
    return tuple(sorted(dict.fromkeys(reasons), key=lambda reason: -_ORDER.index(reason.verdict)))


def shown(text: str, limit: int = 120) -> str:
    """*text* from a file made fit for a terminal and a log line: no control characters, no more than *limit* characters."""
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return plain if len(text) <= limit else plain[:limit] + "…"
