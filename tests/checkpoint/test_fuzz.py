"""Whatever the bytes: a verdict within two seconds, no traceback, nothing executed. STEELYARD_FUZZ sets how many inputs each test tries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from .fuzz import OPCODES, bases, must_hold, mutated, pieces, with_pickle

EXAMPLES = int(os.environ.get("STEELYARD_FUZZ", "1000"))
CANARY = Path(os.environ.get("TMPDIR", "/tmp")) / f"steelyard-canary-{os.getpid()}"
BASES = bases()
EDITS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6)

fuzzed = settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 1000, suppress_health_check=list(HealthCheck))


@fuzzed
@given(st.integers(0, len(BASES) - 1), EDITS)
def test_a_mutated_container_gets_a_verdict(which: int, edits: list[tuple[int, int, bytes]]) -> None:
    must_hold(mutated(BASES[which], edits))


@fuzzed
@given(st.lists(st.sampled_from(pieces(f"touch {CANARY}")), min_size=1, max_size=25))
def test_a_pickle_of_calls_in_any_order_gets_a_verdict_and_is_never_run(blocks: list[bytes]) -> None:
    found = must_hold(with_pickle(b"".join(blocks)))
    assert not CANARY.exists()
    assert found.verdict != "ok" or not any(name.startswith(("os.", "posix.", "builtins.eval")) for name in found.globals)


@fuzzed
@given(st.lists(st.sampled_from([bytes([code]) for code in OPCODES]), min_size=1, max_size=60))
def test_a_pickle_of_any_opcodes_gets_a_verdict(codes: list[bytes]) -> None:
    must_hold(with_pickle(b"".join(codes)))


@fuzzed
@given(st.binary(max_size=300))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    must_hold(data)
