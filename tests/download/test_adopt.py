"""adopt: what lies about is told for what it is, and only what proves is taken over."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.adopt import adopt
from steelyard.download import download
from steelyard.report import Report
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, MIB, REPO, WEIGHTS, got, left_behind, make_site, sha256

PLACEHOLDER = b"# MVDream model placeholder\n# Download from https://huggingface.co/MVDream/MVDream\n"


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def seed_record(name: str, data: bytes) -> bytes:
    """model_info.json as a script makes it: hashed from whatever lies there."""
    return json.dumps({name: {"path": f"/models/{name}", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}}).encode()


def outcome(report: Report, name: str) -> tuple[str, list[str]]:
    (row,) = [row.as_json() for row in report.rows if Path(row.path).name == name]
    return row["action"], row.get("reasons", [])


def test_without_apply_it_only_reports(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    there = lay(tmp_path / "there", {FILE: WEIGHTS, "notes.txt": b"mine"})
    report = adopt(site, there)
    assert report.exit_code == 0
    assert outcome(report, FILE) == ("would-adopt", [])
    assert outcome(report, "notes.txt") == ("ignored", ["unknown"])
    assert "--apply" in report.extra["note"]
    assert not site.store.root.exists()
    assert not site.lock_path.exists()


def test_what_proves_is_copied_in_and_the_original_stays(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    there = lay(tmp_path / "there", {"under/another-name.dat": WEIGHTS})
    report = adopt(site, there, "m", apply=True)
    assert report.ok, report.as_json()
    assert outcome(report, "another-name.dat") == ("adopted", [])
    assert site.store.path_of_model("m", FILE).read_bytes() == WEIGHTS
    assert (there / "under/another-name.dat").read_bytes() == WEIGHTS
    hub.reset_counters()
    assert got(site, download(site))["action"] == "unchanged"
    assert hub.requests == []


def test_weights_that_lie_in_the_store_already_stay_where_they_are(hub: LoopbackHub, site: Site) -> None:
    lay(site.store.root, {FILE: WEIGHTS, "model_info.json": seed_record(FILE, WEIGHTS)})
    inode = site.store.path_of_model("m", FILE).stat().st_ino
    report = adopt(site, site.store.root, apply=True)
    assert report.ok, report.as_json()
    assert outcome(report, FILE) == ("adopted", [])
    assert outcome(report, "model_info.json") == ("ignored", [])
    assert site.store.path_of_model("m", FILE).stat().st_ino == inode
    assert json.loads((site.store.root / "model_info.json").read_text())[FILE]["sha256"] == sha256(WEIGHTS)


def test_what_the_seeds_scripts_left_is_seen_through(hub: LoopbackHub, site: Site) -> None:
    lay(site.store.root, {FILE: PLACEHOLDER, "model_info.json": seed_record(FILE, PLACEHOLDER)})
    report = adopt(site, site.store.root)
    assert report.exit_code == 1
    assert outcome(report, FILE) == ("refused", ["placeholder"])
    assert outcome(report, "model_info.json") == ("refused", ["self-made-hash"])
    assert left_behind(site) == ["model_info.json", FILE]
    assert site.store.path_of_model("m", FILE).read_bytes() == PLACEHOLDER
    assert report.extra["not_found"] == [f"m: {FILE}"]


def test_with_apply_a_placeholder_under_a_final_name_goes_to_quarantine(hub: LoopbackHub, site: Site) -> None:
    lay(site.store.root, {FILE: PLACEHOLDER})
    report = adopt(site, site.store.root, apply=True)
    assert report.exit_code == 1
    assert left_behind(site) == []
    assert [path.read_bytes() for path in (site.store.ours / "quarantine").rglob(FILE)] == [PLACEHOLDER]
    assert download(site).ok


BAD = {
    "half-file": WEIGHTS[: 5 * MIB],
    "wrong-bytes": WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]),
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n",
    "web-page": b"<!DOCTYPE html><html><title>Sign in</title></html>",
    "placeholder": PLACEHOLDER,
}


@pytest.mark.parametrize(("reason", "data"), BAD.items())
def test_each_kind_of_wrong_file_is_named(hub: LoopbackHub, site: Site, tmp_path: Path, reason: str, data: bytes) -> None:
    there = lay(tmp_path / "there", {FILE: data})
    for apply in (False, True):
        report = adopt(site, there, apply=apply)
        assert (report.exit_code, outcome(report, FILE)) == (1, ("refused", [reason]))
        assert (there / FILE).read_bytes() == data
        assert left_behind(site) == []


def test_a_file_whose_room_was_reserved_and_never_filled_is_half(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    data = WEIGHTS[: 5 * MIB] + bytes(len(WEIGHTS) - 5 * MIB)
    assert outcome(adopt(site, lay(tmp_path / "there", {FILE: data})), FILE) == ("refused", ["half-file"])


def test_a_half_file_in_the_store_is_left_for_the_download_to_go_on_with(hub: LoopbackHub, site: Site) -> None:
    lay(site.store.root, {FILE: WEIGHTS[: 8 * MIB]})
    assert adopt(site, site.store.root, apply=True).exit_code == 1
    hub.reset_counters()
    assert got(site, download(site))["bytes_reused"] == 8 * MIB
    assert hub.bytes_sent("cdn") < 3 * MIB


def test_unknown_weights_are_refused_and_left_alone(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    there = lay(tmp_path / "there", {"other.safetensors": bytes(range(256)) * 9})
    report = adopt(site, there, apply=True)
    assert (report.exit_code, outcome(report, "other.safetensors")) == (1, ("refused", ["unknown"]))
    assert (there / "other.safetensors").exists()


def test_a_single_file_can_be_adopted(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    there = lay(tmp_path / "there", {"x.pt": WEIGHTS})
    assert adopt(site, there / "x.pt", apply=True).ok
    assert left_behind(site) == ["model_info.json", FILE]


def test_whole_repos_are_adopted_file_by_file_and_the_rest_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, files=None)
    there = lay(tmp_path / "there", {FILE: WEIGHTS, "README.md": b"# changed by hand\n"})
    report = adopt(site, there, apply=True)
    assert outcome(report, FILE) == ("adopted", [])
    assert outcome(report, "README.md") == ("refused", ["wrong-bytes"])
    assert report.extra["not_found"] == ["m: README.md", "m: configs/a.json"]
    assert download(site).ok


def test_the_command_says_so_with_its_exit_code(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    there = lay(tmp_path / "there", {FILE: PLACEHOLDER, "model_info.json": seed_record(FILE, PLACEHOLDER)})
    command = [sys.executable, "-m", "steelyard", "adopt", str(there), "m", "--config", str(site.path)]
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 1
    assert {row["file"]: row["action"] for row in json.loads(told.stdout)["results"]} == {FILE: "refused", "model_info.json": "refused"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "placeholder" in shown.stdout
    nowhere = subprocess.run(
        [*command[:4], str(tmp_path / "nowhere"), *command[5:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert nowhere.returncode == 1
    assert "Traceback" not in nowhere.stderr
    assert "is not there" in nowhere.stderr


def test_a_hub_that_is_away_is_an_error_and_nothing_is_judged(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    hub.down()
    report = adopt(site, lay(tmp_path / "there", {FILE: WEIGHTS}))
    assert (report.exit_code, len(report.rows)) == (4, 0)


def test_a_cache_of_the_library_can_be_adopted_by_its_links(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPO, FILE, endpoint=hub.endpoint, cache_dir=tmp_path / "elsewhere")
    report = adopt(site, tmp_path / "elsewhere", apply=True)
    assert site.store.path_of_model("m", FILE).read_bytes() == WEIGHTS
    assert got_actions(report) >= {"adopted"}


def got_actions(report: Report) -> set[str]:
    return {str(row.facts["action"]) for row in report.rows}
