"""The drive that fstab names for a place is not mounted: nothing is written into the bare folder, whichever of the two places it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard import fstab
from steelyard.standins.hub import LoopbackHub

from .world import FILE, WEIGHTS, make_site, run


@pytest.mark.parametrize("place", ["models", "hf"])
def test_a_download_never_fills_the_folder_below_an_absent_drive(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    site = make_site(tmp_path, hub)
    point = (site.store.root if place == "models" else site.hub_cache.root).parent
    table = tmp_path / "fstab"
    table.write_text(f"# drives\nUUID=1 / ext4 defaults 0 1\nUUID=2 {point} ext4 nofail 0 2\n")
    monkeypatch.setattr(fstab, "FSTAB", table)
    report = run(site)
    assert (report.exit_code, report.errors[0].code) == (3, "mount-absent")
    assert f"nothing is mounted at {point}" in report.errors[0].message
    site.history.event("run", "", "", "ok")
    below = site.store.root if place == "models" else site.hub_cache.root
    assert not below.exists()
    monkeypatch.setattr(fstab, "FSTAB", tmp_path / "none")
    assert run(site).ok
    assert site.store.path_of_model("m", FILE).read_bytes() == WEIGHTS
