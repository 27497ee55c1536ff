"""Bytes of the right size that are not those that were published: evidence, another try, and never a final name."""

from __future__ import annotations

import json
from pathlib import Path

from steelyard.download import download
from steelyard.errors import Corrupt
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, MIB, REPO, WEIGHTS, codes, got, left_behind, make_site, run, sha256


def cases(site: Site) -> list[Path]:
    return sorted((site.store.ours / "quarantine").glob("*"))


def test_wrong_bytes_once_are_got_over_and_only_the_wrong_piece_is_kept_as_evidence(hub: LoopbackHub, site: Site) -> None:
    hub.faults.add("cdn", f"flip byte {8 * MIB + 5}", times=1)
    assert run(site).ok
    (case,) = cases(site)
    (piece,) = case.glob("*.bin")
    first, last = (int(text) for text in piece.stem.split("-"))
    assert first <= 8 * MIB + 5 < last <= len(WEIGHTS)
    assert piece.read_bytes() != WEIGHTS[first:last]
    assert "arrived wrong" in json.loads((case / "record.json").read_text())["why"]


def test_wrong_bytes_that_stay_end_with_exit_1_the_evidence_and_nothing_under_the_name(hub: LoopbackHub, site: Site) -> None:
    hub.faults.add("cdn", "flip byte 4096")
    report = run(site)
    assert report.exit_code == 1
    (error,) = report.errors
    assert isinstance(error, Corrupt)
    assert sha256(WEIGHTS) in error.message
    (case,) = cases(site)
    assert (case / "record.json").exists()
    assert list((site.store.ours / "staging").glob("*.partial")) == []
    hub.faults.clear()
    assert run(site).ok


def test_another_objects_bytes_are_no_success(hub: LoopbackHub, site: Site) -> None:
    hub.faults.add("cdn", "other bytes")
    assert codes(run(site)) == ["corrupt"]


def test_a_small_file_that_is_wrong_is_asked_for_once_more(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, files=None)
    hub.faults.add("resolve", "flip byte 2", path="README.md", times=1, method="GET")
    assert download(site).ok
    assert site.store.path_of_model("m", "README.md").read_bytes() == b"# A model\n"


def test_a_small_file_that_stays_wrong_does_not_keep_the_others_from_coming(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, files=None)
    hub.faults.add("resolve", "flip byte 2", path="README.md", method="GET")
    report = download(site)
    assert (report.exit_code, codes(report)) == (1, ["corrupt"])
    assert left_behind(site) == ["configs/a.json", "model_info.json", FILE]


def test_bytes_come_from_a_mirror_when_the_hub_sends_wrong_ones(hub: LoopbackHub, tmp_path: Path) -> None:
    with LoopbackHub() as mirror:
        mirror.add_revision(REPO, {FILE: WEIGHTS, "README.md": b"# A model\n", "configs/a.json": b"{}"})
        hub.add_token("hf_secret")
        site = make_site(tmp_path, hub, mirrors=[mirror.endpoint])
        hub.faults.add("cdn", "other bytes")
        assert run(site).ok
        assert mirror.bytes_sent("cdn") == len(WEIGHTS)


def test_bytes_come_from_a_mirror_when_the_hub_is_down_for_files(hub: LoopbackHub, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with LoopbackHub() as mirror:
        mirror.add_revision(REPO, {FILE: WEIGHTS, "README.md": b"# A model\n", "configs/a.json": b"{}"})
        hub.add_token("hf_secret")
        site = make_site(tmp_path, hub, files=None, mirrors=[mirror.endpoint])
        hub.faults.add("resolve", "503")
        assert download(site).ok
        assert not any(request.had_token for request in mirror.requests)
        assert mirror.cdn_saw_token == hub.cdn_saw_token == 0
        assert any(request.had_token for request in hub.requests)


def test_a_mirror_goes_on_where_the_hub_broke_off(hub: LoopbackHub, tmp_path: Path) -> None:
    with LoopbackHub() as mirror:
        mirror.add_revision(REPO, {FILE: WEIGHTS, "README.md": b"# A model\n", "configs/a.json": b"{}"})
        site = make_site(tmp_path, hub, mirrors=[mirror.endpoint])
        hub.faults.add("cdn", "503", skip=2)
        assert run(site).ok
        came = sum(line.bytes_sent for line in hub.requests if line.port == "cdn" and line.status == 206)
        assert came > MIB
        assert mirror.bytes_sent("cdn") == len(WEIGHTS) - came


def test_a_mirror_that_lies_is_told_apart_by_the_hubs_digest(hub: LoopbackHub, tmp_path: Path) -> None:
    with LoopbackHub() as mirror:
        mirror.add_revision(REPO, {FILE: bytes(len(WEIGHTS)), "README.md": b"# A model\n", "configs/a.json": b"{}"})
        site = make_site(tmp_path, hub, mirrors=[mirror.endpoint])
        hub.faults.add("cdn", "503")
        report = run(site)
        assert not report.ok
        hub.faults.clear()
        assert run(site).ok


def test_what_the_primary_says_is_told_when_no_mirror_can_help(hub: LoopbackHub, tmp_path: Path) -> None:
    with LoopbackHub() as mirror:
        site = make_site(tmp_path, hub, mirrors=[mirror.endpoint])
        hub.faults.add("cdn", "503")
        report = run(site)
        assert codes(report) == ["unreachable"]
        assert hub.endpoint in report.errors[0].message


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub: LoopbackHub, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add_token("hf_secret")
    hub.repo(REPO).private = True
    hub.repo(REPO).readers.add("keeper")
    site = make_site(tmp_path, hub, files=None)
    report = download(site)
    assert report.ok, codes(report)
    assert hub.cdn_saw_token == 0
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert kept == []
    assert got(site, report)["action"] == "downloaded"
