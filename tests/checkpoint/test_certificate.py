"""The certificate holds as long as the bytes do, and says only what was proven."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from steelyard.checkpoint import (
    ByteProof,
    LoadReport,
    certificate_path,
    inspect,
    judge,
    load_check,
    read_certificate,
    signature,
    write_certificate,
)
from steelyard.checkpoint.reasons import Reason
from steelyard.errors import Missing, NotLoadable
from steelyard.source import LocalFile

torch = pytest.importorskip("torch")
PROVEN = ByteProof("ok", "sha256")


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(3)}, path)
    with LocalFile(path) as source:
        found = inspect(source)
    report = LoadReport("ok", (), device="cpu", tensors=1, parameters=3, finite=True, torch_version="2.13.0", seconds=1.5, peak_rss_bytes=1)
    write_certificate(path, found, report, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_a_certificate_is_read_back(certified: Path) -> None:
    found = read_certificate(certified)
    assert found is not None and (found.tensors, found.finite, found.trust, found.size_bytes) == (1, True, "ok", certified.stat().st_size)
    with LocalFile(certified) as source:
        assert found.names_digest == signature(inspect(source)).digest
    assert read_certificate(certified, deep=True) == found
    assert certificate_path(certified).name == "w.pt.steelyard.json"


def test_it_is_void_when_the_bytes_change(certified: Path) -> None:
    with certified.open("r+b") as file:
        file.seek(700)
        file.write(b"\1")
    assert read_certificate(certified) is None


def test_times_set_back_deceive_the_quick_look_but_not_the_deep_one(certified: Path) -> None:
    stat = certified.stat()
    with certified.open("r+b") as file:
        file.seek(700)
        file.write(b"\1")
    os.utime(certified, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_certificate(certified) is not None
    assert read_certificate(certified, deep=True) is None


def test_it_is_void_for_another_file_under_the_name(certified: Path) -> None:
    data = certified.read_bytes()
    stat = certified.stat()
    certified.rename(certified.with_name("old"))
    certified.write_bytes(data)
    os.utime(certified, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_certificate(certified) is None
    assert read_certificate(certified, deep=True) is not None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 99}', "[" * 100_000])
def test_a_damaged_certificate_is_none(certified: Path, text: str) -> None:
    certificate_path(certified).write_text(text)
    assert read_certificate(certified) is None


def test_what_did_not_load_is_not_certified(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"placeholder")
    with LocalFile(path) as source, pytest.raises(NotLoadable):
        write_certificate(path, inspect(source), load_check(path), sha256="0" * 64)
    with pytest.raises(Missing):
        read_certificate(tmp_path / "absent.pt")


def test_the_whole_is_never_better_than_the_worst_that_is_known(certified: Path) -> None:
    with LocalFile(certified) as source:
        found = inspect(source)
    assert judge(found).whole == "unknown"
    good = LoadReport("ok", (), finite=True, crc_checked_bytes=12)
    assert {aspect.name: aspect.state for aspect in judge(found, good, None, PROVEN).aspects} == {
        "container": "ok", "trust": "ok", "bytes": "ok", "values": "ok", "fit": "unknown",
    }  # fmt: skip
    bad = LoadReport("broken", (Reason("values-not-finite", "NaN"),), finite=False)
    assert judge(found, bad, None, PROVEN).whole == "bad"
    assert judge(found, good, None, ByteProof("bad", "digest-mismatch")).whole == "bad"
