"""What the file system says, in our words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.disk import make_folder, write_atomically
from steelyard.errors import Refused


@pytest.mark.parametrize(
    "make", [make_folder, lambda path: write_atomically(path, b"x"), lambda path: write_atomically(path / "deep", b"x")]
)
def test_a_place_that_takes_no_new_names_is_refused_not_missing(make: Callable[[Path], object]) -> None:
    with pytest.raises(Refused) as refused:
        make(Path("/proc/nothing-can-be-made-here"))
    assert refused.value.exit_code == 3
    assert "can't be made" in str(refused.value) and refused.value.hint
