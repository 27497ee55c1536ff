"""Whole repos, names from outside, access, two runs at once, leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from steelyard import transfer
from steelyard.download import download
from steelyard.lock import LockedFile
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, MIB, REPO, WEIGHTS, codes, got, left_behind, make_site, run

MANY = {f"assets/{number % 10}/part-{number:04}.json": b'{"n": %d}' % number for number in range(1000)}


def test_a_thousand_small_files_cost_a_request_each_and_a_handful(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("microsoft/TRELLIS", {**MANY, "model.safetensors": WEIGHTS})
    site = make_site(tmp_path, hub, repo_id="microsoft/TRELLIS", files=None, folder="trellis", timeout=10, patience=20)
    report = download(site)
    assert report.ok, codes(report)
    assert len(hub.requests) <= 1000 + 12
    assert len(report.rows) == 1001
    folder = site.config.folder("m")
    assert all((folder / path).read_bytes() == data for path, data in MANY.items())
    hub.reset_counters()
    again = download(site)
    assert {row.outcome for row in again.rows} == {"unchanged"}
    assert hub.requests == []


def test_small_files_come_side_by_side(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("a/many", {f"{number}.json": b"{}%d" % number for number in range(32)})
    hub.faults.add("resolve", "wait 0.2 s")
    site = make_site(tmp_path, hub, repo_id="a/many", files=None, folder="many")
    began = time.monotonic()
    assert download(site).ok
    assert time.monotonic() - began < 32 * 0.2  # one after the other can't be quicker than that


def test_patterns_choose_files_and_a_pattern_that_allows_none_is_said(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path / "one", hub, files=["*.md", "configs/*"])
    assert download(site).ok
    assert left_behind(site) == ["README.md", "configs/a.json", "model_info.json"]
    other = make_site(tmp_path / "two", hub, files=["*.onnx"])
    report = download(other)
    assert (report.exit_code, codes(report)) == (4, ["gone"])
    assert "*.onnx" in report.errors[0].message
    assert FILE in report.errors[0].hint


def test_an_empty_file_is_a_file(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("a/empty", {"__init__.py": b"", "weights.bin": b""})
    site = make_site(tmp_path, hub, repo_id="a/empty", files=None, folder="empty")
    report = download(site)
    assert report.ok, codes(report)
    assert (site.config.folder("m") / "weights.bin").read_bytes() == b""


EVIL = ["../outside.bin", "/etc/outside.bin", "a/../../outside.bin", "C:/x.bin", "a\\b.bin", "con.bin", "a/nul", "x/.steelyard/y.bin",
        ".steelyard/locks/x", "trailing. ", "a//b.bin", "new\nline.bin", "\x00.bin"]  # fmt: skip


def hostile(site: Site, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """The Hub's answers name files that no honest Hub would."""
    from steelyard import hub_page

    honest = hub_page._answer

    def answer(*args: Any) -> bytes:
        told = json.loads(honest(*args))
        told["siblings"] = [told["siblings"][0] | {"rfilename": name} for name in names]
        return json.dumps(told).encode()

    monkeypatch.setattr(hub_page, "_answer", answer)


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_leads_outside_is_refused_and_nothing_is_written(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    site = make_site(tmp_path / "in", hub, files=None, folder="m")
    hostile(site, monkeypatch, name)
    report = download(site)
    assert (report.exit_code, codes(report)) == (3, ["unsafe-name"])
    assert left_behind(site) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert not site.lock_path.exists()


@pytest.mark.parametrize("names", [("Model.bin", "model.bin"), ("a", "a/b.bin"), ("A/x.bin", "a")])
def test_names_that_fall_together_somewhere_are_refused(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    site = make_site(tmp_path, hub, files=None, folder="m")
    hostile(site, monkeypatch, *names)
    assert codes(download(site)) == ["unsafe-name"]


def test_odd_names_that_nobody_asked_for_do_no_harm(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("a/odd", {"model.bin": WEIGHTS, "README.md": b"x", "readme.md": b"y", "aux.py": b"z"})
    site = make_site(tmp_path, hub, repo_id="a/odd", files=["model.bin"])
    assert download(site).ok


def test_a_file_called_model_info_json_is_refused_where_it_would_be_overwritten(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("a/info", {"model_info.json": b"{}", "w.bin": b"1"})
    report = download(make_site(tmp_path / "shared", hub, repo_id="a/info", files=None))
    assert (report.exit_code, codes(report)) == (2, ["config"])
    assert download(make_site(tmp_path / "own", hub, repo_id="a/info", files=None, folder="info")).ok


def test_a_link_below_the_store_is_not_followed_outside(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path / "in", hub, files=None)
    outside = tmp_path / "outside"
    outside.mkdir()
    site.store.root.mkdir(parents=True)
    (site.store.root / "configs").symlink_to(outside)
    assert codes(download(site)) == ["unsafe-name"]
    assert list(outside.iterdir()) == []


# --- access


def gate(hub: LoopbackHub) -> None:
    hub.repo(REPO).gated = "auto"


def privatise(hub: LoopbackHub) -> None:
    hub.repo(REPO).private = True


def disable(hub: LoopbackHub) -> None:
    hub.repo(REPO).disabled = True


ACCESS = [
    (gate, None, "access-denied", "gated", "accept"),
    (gate, "hf_good", "access-denied", "gated", "accept"),
    (privatise, None, "access-denied", "private", "HF_TOKEN"),
    (privatise, "hf_good", "gone", "no such repo", "repo_id"),
    (disable, None, "gone", "disabled", "page"),
    (None, "hf_old", "access-denied", "expired", "new one"),
    (None, "hf_unknown", "access-denied", "does not know this token", "HF_TOKEN"),
]


@pytest.mark.parametrize(("change", "token", "code", "why", "hint"), ACCESS)
def test_each_refusal_has_a_sentence_and_a_next_step_of_its_own(
    hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch, change: Any, token: str | None, code: str, why: str, hint: str
) -> None:
    hub.add_token("hf_good")
    hub.add_token("hf_old", expired=True)
    if change:
        change(hub)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    report = run(site)
    assert (report.exit_code, codes(report)) == (4, [code])
    assert why in report.errors[0].message
    assert hint in report.errors[0].hint
    assert "hf_" not in json.dumps(report.as_json())


def test_access_that_is_lost_after_the_lock_keeps_what_is_held(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    disable(hub)
    report = download(site)
    assert report.ok
    assert got(site, report)["action"] == "unchanged"


def test_a_renamed_repo_is_followed_and_named(hub: LoopbackHub, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    hub.rename_repo(REPO, "ByteDance/MVDream")
    assert run(site).ok
    assert "ByteDance/MVDream now; change repo_id" in caplog.text


@pytest.mark.parametrize(("repo_id", "revision", "code"), [("no/such", "main", "access-denied"), (REPO, "no-such-tag", "gone")])
def test_what_does_not_exist_is_said(hub: LoopbackHub, tmp_path: Path, repo_id: str, revision: str, code: str) -> None:
    site = make_site(tmp_path, hub, repo_id=repo_id)
    path = site.path
    path.write_text(path.read_text() + f'revision = "{revision}"\n')
    report = download(Site.open(path))
    assert (report.exit_code, codes(report)) == (4, [code])


# --- two at once, leftovers


def test_the_second_of_two_runs_says_who_is_at_it(hub: LoopbackHub, site: Site) -> None:
    hub.rate_limit_bytes_per_s = 3 * MIB
    command = [sys.executable, "-m", "steelyard", "download", "--config", str(site.path), "--json", "--here"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while hub.bytes_sent("cdn") < 5 * MIB:
            assert first.poll() is None
            time.sleep(0.01)
        second = download(site)
        assert (second.exit_code, codes(second)) == (3, ["locked"])
        assert f"process {first.pid}" in second.errors[0].message
        first.kill()
        first.wait()
        hub.rate_limit_bytes_per_s = None
        # The lock died with its process; what it brought did not.
        assert got(site, run(site))["action"] == "resumed"
    finally:
        first.kill()
        first.wait()


def test_two_models_that_are_downloaded_at_once_both_stay_agreed_on(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision("a/one", {"one.bin": b"1" * 2 * MIB})
    hub.add_revision("a/two", {"two.bin": b"2" * 2 * MIB})
    site = make_site(tmp_path, hub, repo_id="a/one", files=None, folder="one")
    site.path.write_text(site.path.read_text() + '[models.n]\nrepo_id = "a/two"\n')
    sites = [Site.open(site.path) for _ in range(2)]
    threads = [threading.Thread(target=download, args=(one, [model])) for one, model in zip(sites, ["m", "n"], strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(site.lock().models) == ["m", "n"]
    assert set(json.loads((site.store.root / "model_info.json").read_text())) == {"one.bin", "two.bin"}


def test_one_content_is_staged_by_one_run_at_a_time(site: Site, hub: LoopbackHub) -> None:
    from steelyard.staging import Partial

    locked = LockedFile(FILE, len(WEIGHTS), sha256=site.hub.listing(REPO, "main").matching([FILE])[0].sha256)
    with Partial(site.store.ours / "staging", FILE, locked.etag, locked.size_bytes):
        assert codes(run(site)) == ["locked"]


def test_our_orphans_are_swept_and_the_librarys_are_counted_and_left(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    staging = site.store.ours / "staging"
    orphan = staging / "old-model-0123456789abcdef0123.partial"
    orphan.write_bytes(bytes(MIB))
    recent = staging / "an-update-0123456789abcdef0123.partial"
    recent.write_bytes(bytes(MIB))
    os.utime(orphan, (1, 1))
    left = site.hub_cache.repo_folder(REPO) / "blobs" / "abc.123.incomplete"
    left.write_bytes(bytes(5000))
    report = download(site)
    swept = report.extra["swept"]
    assert (swept["removed"], swept["left"], swept["left_bytes"]) == (1, 1, 5000)
    assert swept["removed_bytes"] >= MIB
    assert not orphan.exists()
    assert recent.exists()
    assert left.exists()


def test_a_partial_that_the_lock_wants_is_never_swept(hub: LoopbackHub, site: Site) -> None:
    fault = hub.faults.add("cdn", "410", skip=2)
    assert not run(site).ok
    fault.times = 0
    for path in (site.store.ours / "staging").iterdir():
        os.utime(path, (1, 1))
    assert got(site, run(site))["action"] == "resumed"


def test_a_big_file_is_asked_for_in_ranges_that_share_the_work(hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LEAST_SPAN_BYTES", MIB)
    hub.rate_limit_bytes_per_s = 20 * MIB
    assert run(site).ok
    ranges = [line for line in hub.requests if line.port == "cdn"]
    assert len(ranges) >= 4
    assert hub.bytes_sent("cdn") == len(WEIGHTS)
