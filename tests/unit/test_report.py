"""An error of the file system, wherever it comes from, is a sentence with the right exit code, and concerns its own block alone."""

import errno

import pytest

from steelyard.report import Report, Row, columns, remarks


@pytest.mark.parametrize(
    ("number", "code", "exit_code"),
    [(errno.ENOSPC, "no-space", 3), (errno.EROFS, "read-only", 3), (errno.EIO, "unreadable", 1), (errno.EACCES, "read-only", 3)],
)
def test_a_file_system_that_refuses_an_unexpected_call_is_a_sentence(number: int, code: str, exit_code: int) -> None:
    """Found by the torture: point/download, from the cache/EROFS/45/7."""
    report = Report("download")
    with report.collecting():
        raise OSError(number, "refused", "models/x")
    with report.collecting():
        report.rows.append(Row("m", "f", "store"))
    assert [error.code for error in report.errors] == [code]
    assert report.exit_code == exit_code
    assert len(report.rows) == 1


def test_how_two_files_differ_is_told_below_the_table() -> None:
    report = Report("inspect")
    names = {"added": ["n"], "removed": [], "reshaped": ["s"], "retyped": [], "changed": [f"c{n}" for n in range(12)]}
    report.rows.append(Row(path="a.pt → b.pt", facts={**names, "details": {"s": "4 float32 → 5 float32"}, "unknown": 0}))
    assert columns(report)[0] == "path"
    lines = remarks(report)
    assert lines[:2] == ["added, 1: n", "reshaped, 1: s (4 float32 → 5 float32)"]
    assert lines[2].startswith("changed, 12: c0, c1") and lines[2].endswith("c9 …")
    report.rows[0] = Row(path="a.pt → a.pt", facts={**{kind: [] for kind in names}, "details": {}, "unknown": 0})
    assert remarks(report) == ["no tensor differs"]
    report.rows[0] = Row(path="a.gguf → b.gguf", facts={**{kind: [] for kind in names}, "changed": None, "details": {}, "unknown": 3})
    assert remarks(report)[0].startswith("unknown, 3")
