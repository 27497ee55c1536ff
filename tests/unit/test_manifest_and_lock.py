"""Records protect themselves: what is written is read back the same, and any change is noticed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import BadRecord, SteelyardError, UnsafeName
from steelyard.lock import Lock, LockedFile, LockedModel, read_lock, write_lock
from steelyard.manifest import FileEntry, Manifest, seal, unseal
from steelyard.pieces import piece_ranges

HEX = "0123456789abcdef"
NAMES = st.lists(st.text("abcdefgh.-_/", min_size=1, max_size=12), max_size=6, unique_by=str.casefold)


def _ok(names: list[str]) -> bool:
    from steelyard.names import check_names

    try:
        check_names(names)
    except UnsafeName:
        return False
    return True


@st.composite
def entries(draw: st.DrawFn, path: str) -> FileEntry:
    size, step = draw(st.integers(0, 5000)), draw(st.integers(1, 2000))
    digest = st.text(HEX, min_size=64, max_size=64)
    pieces = tuple(draw(digest) for _ in piece_ranges(size, step))
    return FileEntry(path, size, draw(digest), draw(st.text(HEX, min_size=16, max_size=16)), step, pieces, draw(digest))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(NAMES.filter(_ok))
    return Manifest("m", "A/b", "main", "a" * 40, tuple(draw(entries(name)) for name in sorted(names)), "2026-01-01T00:00:00+00:00")


@settings(deadline=None)
@given(manifests())
def test_a_manifest_reads_back_as_it_was_written(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.dump(), "here") == manifest


@settings(deadline=None, max_examples=200)
@given(manifests(), st.data())
def test_one_changed_byte_in_a_manifest_is_never_read_as_another_manifest(manifest: Manifest, data: st.DataObject) -> None:
    raw = bytearray(manifest.dump())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = Manifest.parse(bytes(raw), "here")
    except BadRecord:
        return
    assert found == manifest  # white space between tokens carries nothing


def test_a_manifest_that_names_a_file_outside_its_root_is_refused() -> None:
    record = {"steelyard_manifest": 1, "model": "m", "repo_id": "A/b", "revision": "main", "commit": "a" * 40, "created_at": "x"}
    item = {
        "path": "../../etc/cron.d/x",
        "size_bytes": 0,
        "sha256": "0" * 64,
        "crc64nvme": "0" * 16,
        "etag": "e",
        "piece_bytes": 1,
        "pieces": [],
    }
    with pytest.raises(UnsafeName):
        Manifest.parse(seal({**record, "files": [item]}), "replica")


LOCKED = LockedModel(
    "A/b", "main", "a" * 40, (LockedFile("w.pt", 5, sha256="b" * 64), LockedFile("c.json", 2, git_sha1="c" * 40)), "2026-01-01"
)


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "steelyard.lock"
    write_lock(path, Lock({"m": LOCKED}))
    held = read_lock(path).get("m")
    assert held is not None
    assert set(held.files) == set(LOCKED.files)
    assert (held.commit, held.repo_id) == (LOCKED.commit, LOCKED.repo_id)


def test_a_mark_that_an_editor_put_before_the_lock_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "steelyard.lock"
    write_lock(path, Lock({"m": LockedModel("org/m", "main", "c" * 40, (LockedFile("w", 1, sha256="0" * 64),))}))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_lock(path).get("m") is not None


@pytest.mark.parametrize("value", [1e-5, 1e16, 2.5, "\x7f\u2028ü", [1, None, True]])
def test_a_digest_holds_whatever_way_it_is_checked(value: object) -> None:
    sealed = seal({"value": value})
    assert unseal(sealed, "here")["value"] == value
    with pytest.raises(BadRecord):
        unseal(sealed.replace(b'"value"', b'"other"'), "here")


def test_no_lock_file_is_an_empty_lock(tmp_path: Path) -> None:
    assert not read_lock(tmp_path / "none.lock").models


@pytest.mark.parametrize("old, new", [("b" * 64, "d" * 64), ('"size_bytes": 5', '"size_bytes": 6'), ("a" * 40, "e" * 40), ("A/b", "A/c")])
def test_an_entry_of_the_lock_changed_by_hand_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "steelyard.lock"
    write_lock(path, Lock({"m": LOCKED}))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadRecord) as caught:
        read_lock(path)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff\xfe", b'{"steelyard_lock": 9, "models": {}}', b'{"steelyard_lock": 1, "models": []}', b"[" * 100_000],
)
def test_what_is_no_lock_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "steelyard.lock"
    path.write_bytes(content)
    with pytest.raises(SteelyardError) as caught:
        read_lock(path)
    assert caught.value.hint


def test_two_branches_that_lock_different_models_merge_without_repair(tmp_path: Path) -> None:
    path = tmp_path / "steelyard.lock"
    write_lock(path, Lock({"one": LOCKED}))
    first = json.loads(path.read_text())
    write_lock(path, Lock({"two": LOCKED}))
    second = json.loads(path.read_text())
    path.write_text(json.dumps({"steelyard_lock": 1, "models": {**first["models"], **second["models"]}}))
    assert set(read_lock(path).models) == {"one", "two"}
