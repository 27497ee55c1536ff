"""What every kind of copy must do, whatever it is made of: one suite, run against each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from contract import COMMIT, MIB, PART, PIECE, Bytes, Interrupted, Kind, bring_and_die, entry_of, manifest_of, reader_of

from steelyard.copies.base import Finding, Look, Rotten
from steelyard.errors import BadRecord, Missing, Unreachable, UnsafeName
from steelyard.source import read_at

DEPTHS = ("default", "deep")
SIZES = [0, 1, PIECE - 1, PIECE, PIECE + 1, 7 * PIECE + 3]
DATA = random.Random(1).randbytes(3 * PART + 12345)
SMALL = DATA[: 5 * PIECE + 17]
FILE = "sd-v2.1-base-4view.pt"


def flipped(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("size", SIZES)
def test_a_brought_file_is_there_byte_for_byte_and_judged_ok(kind: Kind, size: int) -> None:
    entry = entry_of(FILE, DATA[:size])
    manifest, copy = manifest_of(entry), kind.copy()
    copy.ready(write=True)
    brought = copy.bring(manifest, entry, reader_of(entry, Bytes(DATA[:size])))
    assert (brought.action, brought.bytes_written) == ("copied", size)
    assert kind.read(manifest, FILE) == DATA[:size]
    for depth in DEPTHS:
        finding = copy.judge(manifest, entry, Look(depth))
        assert (finding.verdict, finding.bad_ranges) == ("ok", ()), finding
        assert finding.proof
    with copy.open(manifest, entry) as source:  # type: ignore[attr-defined]
        assert source.size_bytes == size
        assert read_at(source, 0, size + 10) == DATA[:size]
        assert read_at(source, size // 2, 100) == DATA[:size][size // 2 : size // 2 + 100]


def test_a_file_of_many_pieces_is_there_byte_for_byte_and_judged_ok(kind: Kind) -> None:
    entry = entry_of(FILE, DATA)
    manifest, copy = manifest_of(entry), kind.copy()
    assert copy.bring(manifest, entry, reader_of(entry, Bytes(DATA))).bytes_written == len(DATA)
    assert kind.read(manifest, FILE) == DATA
    assert all(copy.judge(manifest, entry, Look(depth)).ok for depth in DEPTHS)
    assert kind.leftovers() == []


@pytest.mark.parametrize("path", ["with space & +plus.bin", "a/b c/ü-日本.pt", "100%25.bin", "q?#=[1].pt", "SHA256SUMS", "manifest.json"])
def test_odd_names_are_kept_as_they_are(kind: Kind, path: str) -> None:
    entry = entry_of(path, SMALL)
    manifest, copy = manifest_of(entry), kind.copy()
    copy.bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    copy.seal(manifest)
    assert kind.read(manifest, path) == SMALL
    assert kind.copy().judge(manifest, entry, Look("deep")).ok
    if kind.keeps_manifests:
        assert kind.copy().manifest(manifest.model, COMMIT) == manifest
        assert kind.copy().strays(manifest) == []


def test_bringing_what_is_there_already_changes_nothing(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    source = Bytes(SMALL)
    brought = kind.copy().bring(manifest, entry, reader_of(entry, source))
    assert (brought.action, brought.bytes_written, source.bytes_read) == ("unchanged", 0, 0)
    assert kind.copy().judge(manifest, entry, Look()).ok


def test_an_interrupted_bring_publishes_nothing_and_goes_on_where_it_was(kind: Kind) -> None:
    entry = entry_of(FILE, DATA)
    manifest = manifest_of(entry)
    half = 2 * PART + PIECE
    with pytest.raises(Interrupted):
        kind.copy().bring(manifest, entry, reader_of(entry, Bytes(DATA, fail_at=half, error=Interrupted())))
    assert kind.read(manifest, FILE) is None
    assert kind.copy().judge(manifest, entry, Look()).verdict == "missing"
    brought = kind.copy().bring(manifest, entry, reader_of(entry, Bytes(DATA)))
    assert brought.action == "resumed"
    assert brought.bytes_written <= len(DATA) - half + kind.in_flight_bytes
    assert kind.read(manifest, FILE) == DATA
    assert kind.leftovers() == []


@pytest.mark.parametrize("at", [0, PART + 3 * PIECE, len(DATA) // PIECE * PIECE])
def test_after_sigkill_only_the_rest_and_what_was_in_flight_is_sent_again(kind: Kind, tmp_path: Path, at: int) -> None:
    entry = entry_of(FILE, DATA)
    manifest = manifest_of(entry)
    source = tmp_path / "source"
    source.write_bytes(DATA)
    kind.copy().ready(write=True)
    bring_and_die(kind.spec(), manifest, entry, source, at)
    assert kind.read(manifest, FILE) is None
    brought = kind.copy().bring(manifest, entry, reader_of(entry, Bytes(DATA)))
    assert brought.bytes_written <= len(DATA) - at + kind.in_flight_bytes
    assert kind.read(manifest, FILE) == DATA
    assert kind.copy().judge(manifest, entry, Look("deep")).ok
    assert kind.leftovers() == []


def test_a_rotten_source_never_publishes(kind: Kind) -> None:
    entry = entry_of(FILE, DATA)
    manifest = manifest_of(entry)
    bad = len(DATA) // PIECE // 2 * PIECE
    with pytest.raises(Rotten) as caught:
        kind.copy().bring(manifest, entry, reader_of(entry, Bytes(flipped(DATA, bad + 5))))
    assert caught.value.where == (bad, bad + PIECE)
    assert kind.read(manifest, FILE) is None
    assert kind.copy().bring(manifest, entry, reader_of(entry, Bytes(DATA))).action == "resumed"
    assert kind.read(manifest, FILE) == DATA


def test_a_rotten_source_leaves_a_good_copy_as_it_is(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(flipped(SMALL, 3))))
    assert kind.read(manifest, FILE) == SMALL


def test_a_piece_that_is_rotten_in_one_source_comes_from_the_next(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    first, second = Bytes(flipped(SMALL, 2 * PIECE)), Bytes(SMALL)
    kind.copy().bring(manifest, entry, reader_of(entry, first, second))
    assert kind.read(manifest, FILE) == SMALL
    assert second.bytes_read == PIECE


def test_a_source_that_is_away_counts_as_not_having_the_piece(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    away = Bytes(SMALL, fail_at=0, error=Unreachable(who="x", why="away"))
    with pytest.raises(Rotten):
        kind.copy().bring(manifest, entry, reader_of(entry, away))
    assert kind.read(manifest, FILE) is None


def test_other_bytes_under_the_final_name_are_replaced_and_kept_as_evidence(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    kind.write(manifest, FILE, b"something else")
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    assert kind.read(manifest, FILE) == SMALL


# --- judge


def damage(data: bytes, how: str) -> tuple[bytes | None, list[tuple[int, int]]]:
    """What stands there instead, and the ranges to be named."""
    last = len(data) // PIECE * PIECE
    match how:
        case "one bit":
            return flipped(data, PIECE + 7), [(PIECE, 2 * PIECE)]
        case "two far bits":
            return flipped(data, 3, last + 1), [(0, PIECE), (last, len(data))]
        case "neighbours":
            return flipped(data, PIECE, 2 * PIECE), [(PIECE, 3 * PIECE)]
        case "truncated":
            return data[: 3 * PIECE + 10], [(3 * PIECE, len(data))]
        case "emptied":
            return b"", [(0, len(data))]
        case "grown":
            return data + b"xyz", [(len(data), len(data) + 3)]
        case "grown and flipped":
            return flipped(data, 0) + b"xyz", [(0, PIECE), (len(data), len(data) + 3)]
        case _:
            return None, []


DAMAGES = ["one bit", "two far bits", "neighbours", "truncated", "emptied", "grown", "grown and flipped"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_judge_names_the_ranges_that_are_bad(kind: Kind, how: str, depth: str) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    data, ranges = damage(SMALL, how)
    assert data is not None
    kind.write(manifest, FILE, data)
    finding = kind.copy().judge(manifest, entry, Look(depth))  # type: ignore[arg-type]
    assert finding.verdict == "corrupt"
    assert list(finding.bad_ranges) == ranges
    assert finding.why


def test_judge_tells_a_missing_file_from_a_bad_one(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    for depth in ("quick", *DEPTHS):
        assert kind.copy().judge(manifest, entry, Look(depth)).verdict == "missing"  # type: ignore[arg-type]
    with pytest.raises(Missing):
        kind.copy().open(manifest, entry)


def test_a_quick_look_is_never_better_than_the_last_proof(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest, copy = manifest_of(entry), kind.copy()
    copy.bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    assert copy.judge(manifest, entry, Look("quick")).verdict == "unverified"
    proof = copy.judge(manifest, entry, Look())
    assert copy.judge(manifest, entry, Look("quick"), proof).verdict == "ok"
    was_bad = Finding("corrupt", ((0, PIECE),), "pieces", "as it was", stat=proof.stat)
    assert copy.judge(manifest, entry, Look("quick"), was_bad).verdict == "corrupt"
    kind.write(manifest, FILE, flipped(SMALL, 9))
    assert copy.judge(manifest, entry, Look("quick"), proof).verdict == "unverified"
    kind.write(manifest, FILE, SMALL[:-1])
    assert copy.judge(manifest, entry, Look("quick"), proof).verdict == "corrupt"


# --- mend


@pytest.mark.parametrize("how", [*DAMAGES, "deleted"])
def test_mend_replaces_what_is_bad_and_only_that(kind: Kind, how: str) -> None:
    data = DATA[: PART + 5 * PIECE + 17] if how in {"one bit", "truncated", "grown"} else SMALL
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(data)))
    bad, _ = damage(data, how)
    if bad is None:
        kind.delete(manifest, FILE)
    else:
        kind.write(manifest, FILE, bad)
    finding = kind.copy().judge(manifest, entry, Look())
    moved = kind.copy().mend(manifest, entry, finding, reader_of(entry, Bytes(data)))
    assert kind.read(manifest, FILE) == data
    assert kind.copy().judge(manifest, entry, Look("deep")).ok
    assert moved <= sum(min(end, len(data)) - min(start, len(data)) for start, end in finding.bad_ranges or [(0, len(data))]) + 2 * PART
    assert kind.leftovers() == []


def test_mend_without_a_good_piece_anywhere_leaves_the_file_as_it_is(kind: Kind) -> None:
    data = DATA[: PART + 2 * PIECE + 99]
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(data)))
    bad = flipped(data, 5, PART + PIECE)
    kind.write(manifest, FILE, bad)
    finding = kind.copy().judge(manifest, entry, Look())
    with pytest.raises(Rotten):
        kind.copy().mend(manifest, entry, finding, reader_of(entry, Bytes(flipped(data, PART + PIECE + 1))))
    assert kind.read(manifest, FILE) == bad


def test_the_bad_bytes_are_kept_before_they_are_replaced(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    copy = kind.copy()
    copy.bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    bad = flipped(SMALL, PIECE + 3)
    kind.write(manifest, FILE, bad)
    copy.mend(manifest, entry, copy.judge(manifest, entry, Look()), reader_of(entry, Bytes(SMALL)))
    kept = [path.read_bytes() for path in (copy.ours / "quarantine").rglob("*.bin")]  # type: ignore[attr-defined]
    assert kept == [bad[PIECE : 2 * PIECE]]


# --- records


def sealed(kind: Kind, data: bytes = SMALL, commit: str = COMMIT) -> tuple[object, object]:
    entry = entry_of(FILE, data)
    manifest = manifest_of(entry, commit=commit)
    copy = kind.copy()
    copy.bring(manifest, entry, reader_of(entry, Bytes(data)))
    copy.seal(manifest)
    return manifest, entry


def needs_manifests(kind: Kind) -> None:
    if not kind.keeps_manifests:
        pytest.skip("the hub cache keeps no manifests: it is the library's")


def test_a_sealed_snapshot_gives_its_manifest_back(kind: Kind) -> None:
    needs_manifests(kind)
    assert kind.copy().commits("mvdream") == []
    assert kind.copy().manifest("mvdream", COMMIT) is None
    manifest, _ = sealed(kind)
    assert kind.copy().commits("mvdream") == [COMMIT]
    assert kind.copy().manifest("mvdream", COMMIT) == manifest
    assert kind.copy().manifest("mvdream", "b" * 40) is None
    assert kind.copy().commits("another") == []


def test_a_damaged_manifest_is_noticed(kind: Kind) -> None:
    needs_manifests(kind)
    manifest, _ = sealed(kind)
    where, whole = manifest_place(kind)
    for bad in (whole.replace(b"MVDream/MVDream", b"MVDream/MVDreaM"), whole[:-20], b"", b"{}"):
        where(bad)
        with pytest.raises(BadRecord):
            kind.copy().manifest("mvdream", COMMIT)
    kind.copy().seal(manifest)  # type: ignore[arg-type]
    assert kind.copy().manifest("mvdream", COMMIT) == manifest


def test_a_manifest_of_another_commit_is_not_taken_for_this_one(kind: Kind) -> None:
    needs_manifests(kind)
    sealed(kind)
    where, _ = manifest_place(kind)
    other = manifest_of(entry_of(FILE, SMALL), commit="b" * 40)
    where(other.dump())
    with pytest.raises(BadRecord):
        kind.copy().manifest("mvdream", COMMIT)


def manifest_place(kind: Kind):  # type: ignore[no-untyped-def]
    """A function that overwrites the manifest behind the copy's back, and what is there."""
    if kind.name == "store":
        path = kind.copy().ours / "manifests" / "mvdream" / f"{COMMIT}.json"  # type: ignore[attr-defined]
        return path.write_bytes, path.read_bytes()
    manifest = manifest_of()
    whole = kind.read(manifest, "manifest.json")
    assert whole is not None
    return (lambda data: kind.write(manifest, "manifest.json", data)), whole


def test_commits_come_in_the_order_they_were_sealed(kind: Kind) -> None:
    if not kind.several_commits:
        pytest.skip("it keeps one version of a model")
    order = ["c" * 40, "a" * 40, "b" * 40]
    for commit in order:
        sealed(kind, commit=commit)
    assert kind.copy().commits("mvdream") == order


def test_an_unsealed_snapshot_is_none(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest = manifest_of(entry)
    kind.copy().bring(manifest, entry, reader_of(entry, Bytes(SMALL)))
    assert kind.copy().commits("mvdream") == []


def test_strays_are_named_and_records_are_none(kind: Kind) -> None:
    needs_manifests(kind)
    manifest, _ = sealed(kind)
    assert kind.copy().strays(manifest) == []  # type: ignore[arg-type]
    kind.write(manifest, "notes/x.txt", b"mine")  # type: ignore[arg-type]
    assert kind.copy().strays(manifest) == ["notes/x.txt"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", ".steelyard/x", "c:\\x"])
def test_a_name_that_would_leave_the_root_is_refused(kind: Kind, name: str) -> None:
    entry = entry_of(FILE, SMALL)
    from dataclasses import replace

    evil = replace(entry, path=name, etag=name or "x/..")
    manifest = manifest_of(evil)
    with pytest.raises(UnsafeName):
        kind.copy().bring(manifest, evil, reader_of(evil, Bytes(SMALL)))


def test_where_and_failure_domain_are_told_without_touching_anything(kind: Kind) -> None:
    entry = entry_of(FILE, SMALL)
    manifest, copy = manifest_of(entry), kind.copy()
    assert FILE in copy.where(manifest, FILE)
    assert copy.failure_domain()
    assert kind.read(manifest, FILE) is None
    assert MIB  # the part size of the suite is S3's least: 5 MiB
