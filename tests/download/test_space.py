"""Space is priced before the first byte; a disk that fills all the same ends in a sentence, and the next run goes on."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard import staging
from steelyard.download import download
from steelyard.errors import NoSpace
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

from .world import FILE, MIB, WEIGHTS, codes, got, left_behind, make_site, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes a real file system of some MiB; the test is skipped by name where that is not allowed."""
    mounted: list[Path] = []

    def make(name: str, mib: int) -> Path:
        point = tmp_path / name
        point.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", point], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("a small file system can't be mounted here (needs root)")
        mounted.append(point)
        return point

    yield make
    for point in mounted:
        subprocess.run(["umount", "-l", point], check=False)


def fill(place: Path) -> Path:
    """Take every free byte of *place*."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def fill_once_begun(hub: LoopbackHub, place: Path, sent_bytes: int) -> threading.Thread:
    def wait() -> None:
        while hub.bytes_sent("cdn") < sent_bytes:
            time.sleep(0.005)
        fill(place)
        hub.rate_limit_bytes_per_s = None

    hub.rate_limit_bytes_per_s = 6 * MIB
    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_plan_that_does_not_fit_is_refused_before_the_first_byte(hub: LoopbackHub, tmp_path: Path) -> None:
    site = make_site(tmp_path, hub, store={"min_free": "900 TB"})
    report = download(site)
    assert (report.exit_code, codes(report)) == (3, ["no-space"])
    assert got(site, report)["action"] == "refused"
    assert hub.bytes_sent("cdn") == 0
    assert left_behind(site) == []
    (error,) = report.errors
    assert isinstance(error, NoSpace)
    assert re.search(r"has [\d.]+ GB free, .* and a reserve of 900.0 TB are needed: [\d.]+ TB more must be made free", error.message)
    assert "clean" in error.hint


def test_what_clean_could_free_is_told(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path, hub, store={"min_free": "900 TB"})
    stale = site.store.ours / "staging" / "gone-0123456789abcdef0123.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(bytes(5 * MIB))
    os.utime(stale, (1, 1))
    with stale.open("rb") as reading:
        # A run that has it open keeps it from being swept at the start.
        fcntl.flock(reading, fcntl.LOCK_SH)
        monkeypatch.setattr("steelyard.leftovers.LEFTOVER_AGE_S", -1)
        report = download(site)
    assert codes(report) == ["no-space"]
    assert "steelyard clean --apply would free 5.2 MB" in report.errors[0].hint


def test_nothing_to_fetch_needs_no_reserve(hub: LoopbackHub, tmp_path: Path) -> None:
    assert run(make_site(tmp_path, hub)).ok
    site = make_site(tmp_path, hub, store={"min_free": "900 TB"})
    assert run(site).ok


@pytest.mark.root
def test_each_file_system_is_priced_for_itself(hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str, int], Path]) -> None:
    cache = small_disk("cache", 5)
    site = make_site(tmp_path, hub, store={"hf_home": str(cache / "hf")})
    report = download(site)
    assert (report.exit_code, codes(report)) == (3, ["no-space"])
    assert str(cache) in report.errors[0].message
    assert hub.bytes_sent("cdn") == 0


@pytest.mark.root
def test_both_copies_count_where_they_share_a_disk(hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str, int], Path]) -> None:
    disk = small_disk("disk", 14)
    both = make_site(disk, hub)
    assert codes(download(both)) == ["no-space"]
    shared = make_site(disk, hub, store={"views": "hardlink"})
    assert run(shared).ok


@pytest.mark.root
def test_a_disk_that_fills_before_the_view_is_made_leaves_the_store_whole(
    hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str, int], Path]
) -> None:
    disk = small_disk("disk", 40)
    site = make_site(disk, hub, timeout=5.0)
    filling = fill_once_begun(hub, disk, 2 * MIB)
    report = download(site)
    filling.join()
    assert (report.exit_code, codes(report)) == (3, ["no-space"])
    assert "Traceback" not in report.errors[0].message
    (disk / "filler").unlink()
    hub.reset_counters()
    assert run(site).ok
    assert hub.bytes_sent("cdn") <= len(WEIGHTS)


@pytest.mark.root
@pytest.mark.parametrize("times", [1, 2])
def test_a_disk_that_fills_in_the_middle_keeps_what_arrived(
    hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """On a file system that can't reserve room, the writes themselves meet the full disk."""
    monkeypatch.setattr(staging, "allocate", lambda *_: False)
    disk = small_disk("disk", 40)
    site = make_site(disk, hub, timeout=5.0)
    for _ in range(times):
        filling = fill_once_begun(hub, disk, hub.bytes_sent("cdn") + 3 * MIB)
        report = run(site)
        filling.join()
        assert (report.exit_code, codes(report)) == (3, ["no-space"])
        (disk / "filler").unlink()
    arrived = sum(path.stat().st_blocks * 512 for path in (site.store.ours / "staging").glob("*.partial"))
    assert arrived >= MIB
    hub.reset_counters()
    report = run(site)
    assert got(site, report)["action"] == "resumed"
    assert hub.bytes_sent("cdn") <= len(WEIGHTS) - arrived + 4 * MIB


@pytest.mark.root
def test_room_that_was_reserved_in_vain_is_given_back(
    hub: LoopbackHub, tmp_path: Path, small_disk: Callable[[str, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("disk", 5)
    site = make_site(tmp_path, hub, store={"models": str(disk / "models")})
    monkeypatch.setattr("steelyard.download.check_room", lambda needs: None)
    report = run(site)
    assert (report.exit_code, codes(report)) == (3, ["no-space"])
    assert "more must be made free" in report.errors[0].message
    used = os.statvfs(disk)
    assert used.f_bavail * used.f_frsize > 4 * MIB


def test_a_models_folder_that_can_not_be_written_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file where the folder belongs")
    report = download(make_site(tmp_path, hub))
    assert (report.exit_code, codes(report)) == (3, ["read-only"])


def test_an_unwritten_name_of_the_file_is_never_there_in_between(hub: LoopbackHub, site: Site) -> None:
    hub.rate_limit_bytes_per_s = 20 * MIB
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        final = site.store.path_of_model("m", FILE)
        while not done.is_set():
            if final.exists():
                seen.add(final.stat().st_size)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    assert run(site).ok
    done.set()
    thread.join()
    assert seen <= {len(WEIGHTS)}
