"""docs/threats.md names a test for each threat; each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_each_test_that_the_threat_model_names_exists() -> None:
    assert len(NAMED) > 25
    absent = [f"{path}::{name}" for path, name in NAMED if not re.search(rf"^def {name}\(", _text(path), re.MULTILINE)]
    assert absent == []


def test_every_threat_that_was_asked_for_is_there_with_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "::" in line]
    assert all(line.count("|") == 5 and "::test_" in line.split("|")[4] for line in rows)
    for who in ("repo on the Hub", "mirror", "bucket", "shared drive", "hostile checkpoint", "tampered lock or manifest", "curious user"):
        assert any(who.lower() in line.lower() for line in rows), who


def _text(path: str) -> str:
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.exists() else ""
