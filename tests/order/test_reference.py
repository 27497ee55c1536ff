"""docs/reference.md is what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for word in ("### steelyard move", "`keep_revisions`", "| 130 | stopped |", "`no-space`", "`steelyard.drill.failed`"):
        assert word in text
