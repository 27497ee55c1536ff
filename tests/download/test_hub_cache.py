"""The hub cache as a view: in the library's own layout, sharing bytes as `views` says, adopted by digest where it is whole already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

from steelyard.download import download
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, MIB, OLD, REPO, WEIGHTS, cached_blobs, codes, got, left_behind, make_site, run, sha256

HF = Path(sys.executable).parent / "hf"


def hf_download(site: Site, hub: LoopbackHub, path: str = FILE) -> None:
    hf_hub_download(REPO, path, endpoint=hub.endpoint, cache_dir=site.hub_cache.root)


@pytest.mark.parametrize("views", ["copy", "hardlink", "auto"])
def test_the_real_client_accepts_the_view(hub: LoopbackHub, tmp_path: Path, views: str) -> None:
    site = make_site(tmp_path, hub, files=None, store={"views": views})
    assert download(site).ok
    commit = hub.repo(REPO).branches["main"]
    root = site.hub_cache.root
    found = hf_hub_download(REPO, FILE, cache_dir=root, local_files_only=True)
    assert Path(found).read_bytes() == WEIGHTS
    assert try_to_load_from_cache(REPO, "README.md", cache_dir=root, revision="main") is not None
    (repo,) = scan_cache_dir(root).repos
    assert scan_cache_dir(root).warnings == []
    (revision,) = repo.revisions
    assert (revision.commit_hash, revision.refs) == (commit, frozenset({"main"}))
    assert {file.file_name for file in revision.files} == {FILE, "README.md", "a.json"}
    shared = os.stat(cached_blobs(site)[-1]).st_nlink == 2
    assert shared == (views == "hardlink")


def test_hf_cache_verify_accepts_the_view(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, files=None)
    assert download(site).ok
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(site.config.store.hf_home)}
    done = subprocess.run([HF, "cache", "verify", REPO], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_reflink_is_refused_before_the_first_byte_where_the_file_system_cannot(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, store={"views": "reflink"})
    report = download(site)
    if report.ok:
        pytest.skip("this file system can reflink")
    assert (report.exit_code, codes(report)) == (3, ["refused"])
    assert "copy" in report.errors[0].hint
    assert got(site, report)["action"] == "refused"
    assert (left_behind(site), hub.bytes_sent("cdn")) == ([], 0)


def test_hardlinks_between_two_drives_are_refused_before_the_first_byte(
    hub: LoopbackHub, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "hf"
    if elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    report = download(make_site(tmp_path, hub, store={"views": "hardlink", "hf_home": str(elsewhere)}))
    assert (report.exit_code, codes(report), hub.bytes_sent("cdn")) == (3, ["refused"], 0)


def test_a_file_that_is_whole_in_the_cache_is_adopted_and_not_fetched(hub: LoopbackHub, site: Site) -> None:
    hf_download(site, hub)
    hub.reset_counters()
    report = run(site)
    assert got(site, report)["action"] == "adopted"
    assert (got(site, report)["bytes_fetched"], hub.bytes_sent("cdn")) == (0, 0)


def test_small_files_that_are_in_the_cache_are_adopted_too(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, files=["README.md"])
    hf_download(site, hub, "README.md")
    hub.reset_counters()
    report = download(site)
    assert got(site, report, "README.md")["action"] == "adopted"
    assert not [line for line in hub.requests if line.kind != "api"]


def test_a_blob_that_repos_share_is_adopted_through_its_link(hub: LoopbackHub, site: Site) -> None:
    hf_download(site, hub)
    (blob,) = cached_blobs(site)
    shared = site.hub_cache.root / "blobs" / blob.name
    shared.parent.mkdir()
    shutil.move(blob, shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    hub.reset_counters()
    report = run(site)
    assert got(site, report)["action"] == "adopted"
    assert hub.bytes_sent("cdn") == 0
    assert shared.read_bytes() == WEIGHTS
    assert blob.is_symlink()


def test_a_corrupt_blob_is_set_aside_and_made_anew_never_adopted_or_shared(hub: LoopbackHub, tmp_path: Path) -> None:
    for views in ("copy", "hardlink"):
        site = make_site(tmp_path / views, hub, store={"views": views})
        hf_download(site, hub)
        (blob,) = cached_blobs(site)
        bad = bytearray(WEIGHTS)
        bad[MIB] ^= 1
        blob.write_bytes(bad)
        assert run(site).ok
        assert blob.read_bytes() == WEIGHTS
        kept = [path.read_bytes() for path in (site.hub_cache.ours / "quarantine").rglob(blob.name)]
        assert kept == [bytes(bad)]


def test_a_corrupt_shared_blob_is_not_overwritten_for_the_other_repos(hub: LoopbackHub, site: Site) -> None:
    hf_download(site, hub)
    (blob,) = cached_blobs(site)
    shared = site.hub_cache.root / "blobs" / blob.name
    shared.parent.mkdir()
    shared.write_bytes(b"x" * len(WEIGHTS))
    blob.unlink()
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert run(site).ok
    assert shared.read_bytes() == b"x" * len(WEIGHTS)
    assert blob.read_bytes() == WEIGHTS
    assert not blob.is_symlink()


def test_a_cache_that_lost_its_link_or_ref_gets_them_back(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    folder = site.hub_cache.repo_folder(REPO)
    shutil.rmtree(folder / "snapshots")
    (folder / "refs" / "main").unlink()
    assert run(site).ok
    assert hf_hub_download(REPO, FILE, cache_dir=site.hub_cache.root, local_files_only=True)


def test_what_is_damaged_in_the_store_is_mended_from_the_cache_without_the_hub(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    path = site.store.path_of_model("m", FILE)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"rot")
    hub.reset_counters()
    report = run(site)
    assert got(site, report)["action"] == "adopted"
    assert hub.requests == []


def test_of_a_file_damaged_in_both_places_only_the_bad_piece_is_fetched(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    for path in (site.store.path_of_model("m", FILE), *cached_blobs(site)):
        with path.open("r+b") as file:
            file.seek(len(WEIGHTS) - 10)
            file.write(b"rot")
    hub.reset_counters()
    report = run(site)
    assert got(site, report)["action"] == "resumed"
    assert hub.bytes_sent("cdn") == len(WEIGHTS) - 8 * MIB


def test_a_piece_that_the_hub_will_not_send_rightly_is_an_error_and_no_traceback(hub: LoopbackHub, site: Site) -> None:
    assert run(site).ok
    for path in (site.store.path_of_model("m", FILE), *cached_blobs(site)):
        path.write_bytes(b"rot" + path.read_bytes()[3:])
    hub.faults.add("cdn", "flip byte 5")
    report = download(site)
    assert (report.exit_code, codes(report)) == (1, ["corrupt"])
    hub.faults.clear()
    hub.faults.add("cdn", "503")
    report = download(site)
    assert (report.exit_code, codes(report)) == (4, ["unreachable"])
    hub.faults.clear()
    assert run(site).ok


def test_a_half_file_in_the_way_is_kept_as_evidence_and_its_good_bytes_are_reused(hub: LoopbackHub, site: Site) -> None:
    path = site.store.path_of_model("m", FILE)
    path.parent.mkdir(parents=True)
    half = WEIGHTS[: 8 * MIB]
    path.write_bytes(half)
    report = run(site)
    assert got(site, report)["bytes_reused"] == len(half)
    assert hub.bytes_sent("cdn") <= len(WEIGHTS) - len(half) + MIB
    assert [one.read_bytes() for one in (site.store.ours / "quarantine").rglob(FILE)] == [half]


def test_a_whole_file_that_lies_in_the_store_already_is_adopted(hub: LoopbackHub, site: Site) -> None:
    path = site.store.path_of_model("m", FILE)
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    report = run(site)
    assert got(site, report)["action"] == "adopted"
    assert hub.bytes_sent("cdn") == 0


def test_a_link_in_the_store_is_replaced_by_a_file_and_its_target_left_alone(hub: LoopbackHub, site: Site, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.bin"
    elsewhere.write_bytes(OLD)
    path = site.store.path_of_model("m", FILE)
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    assert run(site).ok
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == OLD
    assert sha256(path.read_bytes()) == sha256(WEIGHTS)


def test_a_folder_where_the_file_belongs_is_said(hub: LoopbackHub, site: Site) -> None:
    path = site.store.path_of_model("m", FILE)
    path.mkdir(parents=True)
    report = download(site)
    assert (report.exit_code, codes(report)) == (1, ["wrong-type"])
    assert path.is_dir()
