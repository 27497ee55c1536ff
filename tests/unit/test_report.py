"""An error of the file system, wherever it comes from, is a sentence with the right exit code, and concerns its own block alone."""

import errno

import pytest

from steelyard.gathered import MOST, gathered
from steelyard.report import Report, Row, columns, markdown, remarks


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


def test_what_went_well_for_many_files_is_one_line_and_what_did_not_is_told_one_by_one() -> None:
    report = Report("backup")
    for number in range(200):
        bad = number in {3, 77}
        facts = {"action": "refused" if bad else "copied", "bytes_written": 0 if bad else 10, "commit": "c", "sha256": str(number)}
        report.rows.append(Row("m", f"f{number}", "usb", f"/usb/f{number}", facts, 1 if bad else 0))
    report.rows += [Row("m", f"f{number}", "s3", "", {"action": "unchanged", "bytes_written": 0}) for number in range(MOST)]
    shown = gathered(report.rows)
    assert [(row.file, row.outcome, row.facts["bytes_written"]) for row in shown[:3]] == [
        ("198 files", "copied", 1980), ("f3", "refused", 0), ("f77", "refused", 0),
    ]  # fmt: skip
    assert len(shown) == 3 + MOST, "as many as a person reads are told one by one"
    assert (shown[0].path, shown[0].facts["commit"], "sha256" in shown[0].facts) == ("", "c", False)
    assert "| 198 files |" in markdown(report) and "f77" in markdown(report)
    assert len(report.as_json()["results"]) == 200 + MOST, "programs get every row"


def test_a_file_with_a_remark_is_never_told_among_others() -> None:
    rows = [Row("m", f"f{number}", "store", "", {"action": "downloaded"}) for number in range(MOST + 1)]
    rows[5].facts = {"action": "downloaded", "warning": "it is suspect"}
    assert [row.file for row in gathered(rows)] == [row.file for row in rows]
    rows.append(Row("m", "one more", "store", "", {"action": "downloaded"}))
    assert [row.file for row in gathered(rows)] == [f"{MOST + 1} files", "f5"]
