"""Licence, model card and config are kept with the weights, and are no part of what is judged."""

from __future__ import annotations

import shutil

import pytest

from steelyard.backup import backup
from steelyard.download import download
from steelyard.errors import Unreachable
from steelyard.papers import held_papers, papers_folder
from steelyard.restore import restore
from steelyard.standins.hub import LoopbackHub
from steelyard.verify import verify
from tests.conftest import FILE, REPO, World
from tests.order.conftest import quick

CARD = b"---\nlicense: openrail\n---\n# MVDream\n"


def test_papers_come_with_the_weights_at_the_locked_commit_and_change_no_row(world: World, hub: LoopbackHub, checkpoint) -> None:  # type: ignore[no-untyped-def]
    files = {FILE: checkpoint, "LICENSE": b"terms", "config.json": b"{}", "tokenizer/vocab.json": b"{}", "samples/a.png": b"x" * 99}
    hub.add_revision(REPO, {**files, "tokenizer/tokenizer.json": b"[]"})
    report = download(world.site())
    assert [row.file for row in report.rows] == [FILE]
    site = world.site()
    commit = site.lock().models["mvdream"].commit
    kept = held_papers(site, "mvdream", commit)
    assert kept is not None
    assert [file.path for file in kept.files] == ["LICENSE", "README.md", "config.json", "tokenizer/tokenizer.json", "tokenizer/vocab.json"]
    assert (papers_folder(site, "mvdream", commit) / "README.md").read_bytes() == CARD
    assert [file.path for file in site.lock().models["mvdream"].files] == [FILE]
    assert [row.file for row in verify(site, copy="all").rows if row.copy == "store"] == [FILE]
    status = quick(world, "status").json
    assert status["models"][0]["licence"] == "openrail"


def test_a_drive_holds_them_too_and_gives_them_back(held: World) -> None:
    site = held.site()
    commit = site.lock().models["mvdream"].commit
    assert backup(site).ok
    there = held.usb / "mvdream" / commit / ".steelyard" / "papers"
    assert (there / "README.md").read_bytes() == CARD
    assert {row.outcome for row in verify(site, copy="usb").rows} == {"ok"}, "and they are no strays"
    shutil.rmtree(held.models)
    report = restore(held.site(), "mvdream")
    assert [row.file for row in report.rows] == [FILE]
    assert (papers_folder(held.site(), "mvdream", commit) / "README.md").read_bytes() == CARD


def test_papers_that_can_not_be_had_fail_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise Unreachable(who="the Hub", why="HTTP 503")

    monkeypatch.setattr("steelyard.papers.fetch_small", down)
    assert download(world.site()).exit_code == 0
    site = world.site()
    assert held_papers(site, "mvdream", site.lock().models["mvdream"].commit) is None


def test_whoever_does_not_want_them_says_so_and_a_run_with_nothing_to_fetch_asks_nobody(world: World, hub: LoopbackHub) -> None:
    world.config.write_text(world.config.read_text().replace('dir = "."', 'dir = "."\npapers = false'))
    assert download(world.site()).exit_code == 0
    world.config.write_text(world.config.read_text().replace("papers = false", "papers = true"))
    hub.reset_counters()
    assert download(world.site()).exit_code == 0
    assert hub.requests == []
