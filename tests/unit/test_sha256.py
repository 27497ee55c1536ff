"""SHA-256 taken up in the middle is the very digest, and states that were written down need not be trusted."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard import sha256
from steelyard.copies.base import Finding, ProvenReader
from steelyard.errors import Corrupt
from steelyard.manifest import FileEntry, Manifest
from steelyard.mending import mend_in_place, proves
from steelyard.pieces import Arrival
from steelyard.sha256 import RecordingSha256, StatefulSha256, at_stretch, stretches
from steelyard.source import LocalFile

KIB = 1 << 10
STEP = 16 * KIB

pytestmark = pytest.mark.skipif(sha256.library() is None, reason="this Python's libcrypto does not show the state of a SHA-256")


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sha256, "STRETCH_BYTES", 64 * KIB)


def arrived(data: bytes, name: str = "f", step: int = STEP) -> FileEntry:
    arrival = Arrival(len(data), piece_bytes=step)
    arrival.feed(data)
    return FileEntry.of(name, arrival.finish())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 30), st.integers(0, 2000))
def test_a_digest_goes_on_from_any_whole_block(data: bytes, blocks: int, cut: int) -> None:
    at = min(blocks * 64, len(data) // 64 * 64)
    first = StatefulSha256.begin(sha256.library())
    first.update(bytearray(data[:at]))
    second = StatefulSha256.begin(sha256.library(), first.state(), at)
    second.update(data[at : at + cut])
    other = second.copy()
    second.update(data[at + cut :])
    other.update(data[at + cut :])
    assert second.hexdigest() == second.hexdigest() == other.hexdigest() == hashlib.sha256(data).hexdigest()


def test_lengths_beyond_four_gigabits_are_carried() -> None:
    """The length in bits has two words in the structure: what was fed before counts, above 512 MiB too."""
    at = 5 << 30
    found = StatefulSha256.begin(sha256.library(), bytes(32), at)
    assert (found._context.high << 32 | found._context.low) == at * 8
    found.update(bytearray(64))
    assert (found._context.high << 32 | found._context.low) == (at + 64) * 8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5 * 64 * KIB), st.lists(st.integers(1, 100 * KIB), max_size=8))
def test_states_do_not_depend_on_how_the_bytes_arrive(size: int, cuts: list[int]) -> None:
    data = random.Random(size).randbytes(size)
    whole, parts = RecordingSha256(size), RecordingSha256(size)
    whole.update(data)
    at = 0
    for cut in [*cuts, size]:
        parts.update(data[at : at + cut])
        at += cut
    assert whole.states == parts.states
    assert len(whole.states) == max(0, -(-size // sha256.STRETCH_BYTES) - 1)
    assert whole.hexdigest() == parts.hexdigest() == hashlib.sha256(data).hexdigest()
    for index, (start, end) in enumerate(stretches(size, whole.states)):
        stretch = at_stretch(index, whole.states)
        stretch.update(data[start:end])
        last = end == size
        assert (stretch.hexdigest() if last else stretch.state().hex()) == (whole.hexdigest() if last else whole.states[index])


def test_a_file_is_proven_by_its_stretches_and_any_other_is_not(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(5 * 64 * KIB + 77)
    entry, path = arrived(data), tmp_path / "f"
    path.write_bytes(data)
    with LocalFile(path) as source:
        assert proves(source, entry)
        assert not proves(source, replace(entry, sha256_states=()))
        for wrong in range(len(entry.sha256_states)):
            states = [("0" * 64 if index == wrong else one) for index, one in enumerate(entry.sha256_states)]
            assert not proves(source, replace(entry, sha256_states=tuple(states)))
        assert not proves(source, replace(entry, sha256="0" * 64))
    for at in (0, 64 * KIB - 1, 64 * KIB, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with LocalFile(path) as source:
            assert not proves(source, entry), at
    path.write_bytes(data[:-1])
    with LocalFile(path) as source:
        assert not proves(source, entry), "cut short"


@pytest.mark.parametrize("states", ["right", "wrong", "none"])
def test_a_file_is_mended_whatever_the_states_say(tmp_path: Path, states: str) -> None:
    data = random.Random(2).randbytes(7 * 64 * KIB + 5)
    entry, path, good = arrived(data), tmp_path / "f", tmp_path / "good"
    entry = replace(entry, sha256_states={"right": entry.sha256_states, "wrong": ("ab" * 32,) * 7, "none": ()}[states])
    good.write_bytes(data)
    spoilt = bytearray(data)
    bad = [0, 3, len(entry.pieces) - 1]
    for index in bad:
        spoilt[index * STEP] ^= 1
    path.write_bytes(spoilt)
    finding = Finding("corrupt", tuple(entry.ranges[index] for index in bad))
    with LocalFile(good) as source:
        moved = mend_in_place(path, tmp_path / "ours", entry, finding, ProvenReader(entry, {"good": source}))
    assert path.read_bytes() == data
    assert moved == sum(end - start for start, end in finding.bad_ranges)


def test_pieces_that_do_not_make_up_the_digest_are_not_written(tmp_path: Path) -> None:
    """A manifest whose pieces belong to other bytes than its SHA-256: the states are those of the other bytes too."""
    right, other = random.Random(3).randbytes(3 * 64 * KIB), random.Random(4).randbytes(3 * 64 * KIB)
    entry, path, good = replace(arrived(other), sha256=arrived(right).sha256), tmp_path / "f", tmp_path / "good"
    good.write_bytes(other)
    spoilt = bytes(STEP) + other[STEP:]
    path.write_bytes(spoilt)
    with LocalFile(good) as source, pytest.raises(Corrupt):
        mend_in_place(path, tmp_path / "ours", entry, Finding("corrupt", ((0, STEP),)), ProvenReader(entry, {"good": source}))
    assert path.read_bytes() == spoilt


def test_a_manifest_carries_the_states_and_is_the_same_without_them() -> None:
    entry = arrived(random.Random(5).randbytes(200 * KIB))
    manifest = Manifest("m", "A/b", "main", "a" * 40, (entry,))
    read = Manifest.parse(manifest.dump(), "here")
    assert read.files[0].sha256_states == entry.sha256_states
    assert len(entry.sha256_states) == 3
    assert read == Manifest("m", "A/b", "main", "a" * 40, (replace(entry, sha256_states=()),), manifest.created_at)


def test_without_such_a_library_the_digest_is_hashlibs_and_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = random.Random(6).randbytes(200 * KIB)
    known = arrived(data)
    monkeypatch.setattr(sha256, "library", lambda: None)
    entry, path = arrived(data), tmp_path / "f"
    path.write_bytes(data)
    assert (entry.sha256, entry.sha256_states) == (hashlib.sha256(data).hexdigest(), ())
    with LocalFile(path) as source:
        assert not proves(source, known), "states from elsewhere can't be used here"
