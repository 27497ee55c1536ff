"""views = "copy": the hub cache's copy is written while the file arrives, and is as right as the store's or not there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from steelyard.direct import aligned_buffer, open_direct, write_direct
from steelyard.errors import NoSpace
from steelyard.into_store import blob_of
from steelyard.second import SecondCopy
from steelyard.site import Site
from steelyard.staging import Partial
from steelyard.standins.hub import LoopbackHub

from .test_kills import BIG, kill_at, start
from .world import FILE, MIB, REPO, make_site, run


def blob(site: Site) -> Path:
    locked = site.locked_model("m")
    assert locked is not None
    file = locked.get(FILE)
    assert file is not None
    return blob_of(site, locked, file)


def proof(site: Site) -> str:
    locked = site.locked_model("m")
    assert locked is not None
    last = site.history.latest("hub-cache", "m", locked.commit, FILE)
    return last.finding.proof if last else ""


def test_both_copies_come_from_one_pass(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    assert run(site, BIG).ok
    store = site.store.path_of_model("m", FILE)
    assert blob(site).read_bytes() == BIG
    assert blob(site).stat().st_ino != store.stat().st_ino
    assert proof(site) == "sha256 on arrival"
    assert list((site.hub_cache.ours / "staging").iterdir()) == []


def test_bytes_that_came_wrong_once_are_in_neither(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    hub.faults.add("cdn", f"flip byte {8 * MIB + 5}", times=1)
    site = make_site(tmp_path, hub)
    assert run(site, BIG).ok
    assert blob(site).read_bytes() == BIG


def test_what_a_killed_run_left_of_it_is_not_believed(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    hub.rate_limit_bytes_per_s = 80 * MIB
    kill_at(site, hub, len(BIG) // 2)
    for partial in (site.hub_cache.ours / "staging").glob("*.partial"):
        with partial.open("r+b") as out:  # rot in what the next run could be tempted to go on with
            out.write(b"rotten")
    hub.rate_limit_bytes_per_s = None
    child = start(site)
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert blob(site).read_bytes() == BIG
    assert proof(site) != "sha256 on arrival"


def test_its_own_trouble_does_not_end_the_download(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    full = NoSpace(place="the hub cache", free="0", need="1", short="1")
    put = Partial.write

    def write(self: Partial, offset: int, data: memoryview | bytes) -> None:
        if self.folder == site.hub_cache.ours / "staging" and offset >= 8 * MIB and not tried:
            tried.append(offset)
            raise full
        put(self, offset, data)

    tried: list[int] = []
    monkeypatch.setattr(Partial, "write", write)
    with caplog.at_level(logging.WARNING):
        assert run(site, BIG).ok
    assert tried
    assert "made later" in caplog.text
    assert blob(site).read_bytes() == BIG


def test_a_second_copy_that_is_not_whole_is_not_published(tmp_path: Path) -> None:
    block = aligned_buffer(MIB)
    with SecondCopy(Partial(tmp_path / "staging", "a", "0" * 64, 2 * MIB)) as second:
        second.write(0, block)
        assert not second.publish(tmp_path / "a")
        second.write(MIB, block)
        second.forget()
        assert not second.publish(tmp_path / "a")
        second.write(0, block)
        second.write(MIB, block)
        assert second.publish(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size == 2 * MIB


@pytest.mark.parametrize(
    ("offset", "length", "shift"), [(0, 8192, 0), (0, 5000, 0), (4096, 4096, 1), (100, 4096, 0), (8192, 12, 0), (0, 0, 0)]
)
def test_a_direct_write_does_what_is_aligned_and_the_rest_the_ordinary_way(tmp_path: Path, offset: int, length: int, shift: int) -> None:
    size = 20 * MIB
    with Partial(tmp_path / "staging", "a", "1" * 64, size) as partial:
        view = aligned_buffer(length + shift)[shift : shift + length]
        view[:] = bytes(range(256)) * (length // 256) + bytes(length % 256)
        partial.write(offset, view)
        with partial.path.open("rb") as back:
            back.seek(offset)
            assert back.read(length) == view
        assert partial.path.stat().st_size == size


def test_where_it_can_not_be_had_nothing_is_written_direct(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as out:
        assert open_direct(-1, 0) == -1
        assert write_direct(out.fileno(), aligned_buffer(8192), 7) == 0
