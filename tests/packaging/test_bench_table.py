"""The table of `make bench` says where we are behind, and its documents are made from the same rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = str(Path(__file__).resolve().parents[2] / "bench")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    for name in ("rows", "table"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_ahead_behind_and_limit_are_told_apart() -> None:
    from rows import Row

    assert Row("b", "w", 1.0, "rsync", 4.0).judgement == "ahead, 4.0 ×"
    assert Row("b", "w", 1.5, "rsync", 1.0, because="it proves").judgement == "behind by 50 %: it proves"
    assert Row("b", "w", 1.2, "dd", 1.0, is_limit=True).judgement == "1.20 × the limit"


def test_what_each_bench_writes_becomes_rows() -> None:
    from rows import rows_of

    verify = {
        "size_bytes": 1 << 30,
        "seconds": {"warm steelyard verify": [1.0], "warm engine": [0.5], "warm cat": [0.4], "cold engine": [2], "cold cat": [1.9]},
    }
    told = [(row.what, row.peer_name, row.ours, row.is_limit) for row in rows_of("verify", verify)]
    assert ("verify 1 GiB, warm", "cat", 1.0, True) in told
    assert ("verify 1 GiB, cold (in a process that runs already)", "cat", 2, True) in told
    backup = {
        "copy": {
            "seconds": {"command": [1.0], "verb": [0.7], "rsync -a + sha256sum -c": [3.0], "dd: read, write, read": [0.8]},
            "costs": {},
        }
    }
    assert [row.ratio < 1 for row in rows_of("backup", backup)] == [True, False, True, True]
    s3 = {"up": {"wall": {"steelyard": [1.0], "s5cmd a": [3.0], "s5cmd b": [2.0]}, "cpu": {}}}
    assert [(row.peer_name, row.peer) for row in rows_of("s3", s3)] == [("s5cmd b", 2.0)]
    assert rows_of("fleet", {"whatever": 1}) == []


def test_text_markdown_and_plot_hold_every_race(tmp_path: Path) -> None:
    from rows import Row
    from table import as_text, machine, write_docs

    rows = [Row("b", "restore <2 GiB>", 1.0, "rsync", 4.0), Row("b", "repair", 2.0, "rsync", 1.0, unit="bytes", because="why | not")]
    assert all(row.what in as_text(rows) for row in rows)
    write_docs(tmp_path, rows, machine(), "make bench")
    text = (tmp_path / "bench.md").read_text()
    assert "behind in 1" in text
    assert "why \\| not" in text
    plot = (tmp_path / "bench.svg").read_text()
    assert "restore &lt;2 GiB&gt; / rsync" in plot
    assert rows[1].from_json(rows[1].as_json()) == rows[1]
