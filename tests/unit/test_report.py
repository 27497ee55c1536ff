"""An error of the file system, wherever it comes from, is a sentence with the right exit code, and concerns its own block alone."""

import errno

import pytest

from steelyard.report import Report, Row


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
