"""Steelyard keeps large model weights downloaded, verified, loadable, backed up and current, and proves it by restoring them.

For the user's own code: `from steelyard import weights, state_dict, expect`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, which takes longer to load than a short answer to give
if TYPE_CHECKING:
    from typing import Any

    from steelyard.use import expect, state_dict, weights

__version__ = "0.1.0"
__all__ = ["__version__", "expect", "state_dict", "weights"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `steelyard --help` must not pay for it.
    if name in {"weights", "state_dict", "expect"}:
        from steelyard import use

        return getattr(use, name)
    raise AttributeError(f"module 'steelyard' has no attribute {name!r}")
