"""Names from outside stay inside."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import UnsafeName
from steelyard.names import check_name, check_names, confine, slug

EVIL = [
    "", "/", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "C:\\x", "C:x", "a\\b", "\\\\host\\share", "a\x00b", "a\nb",
    "con", "NUL.txt", "dir/com1.bin", "trailing.", "trailing ", "dir /x", ".steelyard/locks/x", "x/.STEELYARD/y", "a" * 256, "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL, ids=ascii)
def test_an_evil_name_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeName) as caught:
        confine(tmp_path, name)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b.pt", "sd-v2.1-base-4view.pt", "ünï/cödé.bin", "..a", "a..b", "con-fig.json", "a b/c d"])
def test_an_ordinary_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    assert confine(tmp_path, name) == tmp_path / name


def test_a_link_on_the_way_that_leads_outside_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (root / "door").symlink_to(outside)
    with pytest.raises(UnsafeName):
        confine(root, "door/file")


@given(st.text(max_size=40))
def test_whatever_is_accepted_stays_below_the_root(name: str) -> None:
    try:
        path = check_name(name)
    except UnsafeName:
        return
    assert not path.is_absolute()
    joined = os.path.normpath(os.path.join("/base/of/it", str(path)))
    assert joined.startswith("/base/of/it/")


def test_two_names_that_differ_only_in_case_are_refused() -> None:
    with pytest.raises(UnsafeName, match="where case does not count"):
        check_names(["Model.pt", "model.PT"])


def test_a_file_can_not_be_the_folder_of_another() -> None:
    with pytest.raises(UnsafeName, match="can't be its folder"):
        check_names(["a", "a/b"])


@given(st.text(max_size=60))
def test_a_slug_has_only_what_an_artifact_key_may_have(text: str) -> None:
    assert slug(text)
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
