"""SIGKILL, reboots and changes upstream: the next run proves what is there and fetches the rest, of the version that was agreed on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steelyard import staging
from steelyard.download import download
from steelyard.errors import Range
from steelyard.site import Site
from steelyard.staging import partial_paths
from steelyard.standins.hub import LoopbackHub
from steelyard.transfer import Transfer

from .world import FILE, MIB, REPO, WEIGHTS, got, left_behind, make_site, run, sha256

AGAIN_BYTES = 16 * MIB
BIG = WEIGHTS * 8  # 72 MiB


def start(site: Site) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "steelyard", "download", "--config", str(site.path), "--json", "--here"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def kill_at(site: Site, hub: LoopbackHub, sent_bytes: int) -> None:
    child = start(site)
    try:
        until = time.monotonic() + 60
        while hub.bytes_sent("cdn") < sent_bytes:
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_after_a_kill_the_next_run_fetches_the_rest_and_little_more(hub: LoopbackHub, tmp_path: Path, percent: int) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    hub.rate_limit_bytes_per_s = 80 * MIB
    kill_at(site, hub, len(BIG) * percent // 100)
    arrived = hub.bytes_sent("cdn")
    assert left_behind(site) == []
    hub.rate_limit_bytes_per_s = None
    hub.reset_counters()
    child = start(site)
    told = json.loads(child.communicate(timeout=60)[0])
    assert child.returncode == 0, told
    (row,) = told["results"]
    assert row["action"] == "resumed"
    assert row["sha256"] == sha256(BIG)
    assert hub.bytes_sent("cdn") <= len(BIG) - arrived + AGAIN_BYTES
    assert row["bytes_fetched"] == hub.bytes_sent("cdn")
    assert site.store.path_of_model("m", FILE).read_bytes() == BIG
    assert hub.cdn_saw_token == 0


def test_of_a_line_that_is_quicker_than_we_are_little_is_asked_for_at_once(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the other side has sent and we have not written is lost with a kill, however much of it the kernel holds for us.
    hub.add_revision(REPO, {FILE: BIG})
    hub.faults.add("cdn", "wait 0.05 s")
    honest = staging.Partial.write

    def slow(partial: staging.Partial, offset: int, data: memoryview | bytes) -> None:
        time.sleep(0.02)
        honest(partial, offset, data)

    monkeypatch.setattr(staging.Partial, "write", slow)
    shared = Transfer._take
    at_once = []

    def seen(transfer: Transfer, number: int) -> Range | None:
        taken = shared(transfer, number)
        at_once.append(transfer._asked_bytes)
        return taken

    monkeypatch.setattr(Transfer, "_take", seen)
    assert run(make_site(tmp_path, hub, patience=20, timeout=10), BIG).ok
    assert max(at_once) <= AGAIN_BYTES
    spans = [[int(text) for text in (one.range or "").removeprefix("bytes=").split("-")] for one in hub.requests if one.range]
    assert len(spans) < len(BIG) // (4 * MIB)


def test_being_killed_again_and_again_still_comes_to_an_end(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    hub.rate_limit_bytes_per_s = 80 * MIB
    for _ in range(3):
        kill_at(site, hub, hub.bytes_sent("cdn") + 10 * MIB)
    hub.rate_limit_bytes_per_s = None
    assert run(site, BIG).ok
    assert hub.bytes_sent("cdn") <= len(BIG) + 3 * AGAIN_BYTES


def staged(site: Site, content: bytes) -> Path:
    return partial_paths(site.store.ours / "staging", FILE, sha256(content))[0]


def interrupted(hub: LoopbackHub, site: Site) -> tuple[Path, int]:
    """A download that the Hub ended after its first 4 MiB and one more range; its staging file, and what is missing of it."""
    fault = hub.faults.add("cdn", "410", skip=2)
    assert not run(site).ok
    fault.times = 0
    missing = len(WEIGHTS) - sum(line.bytes_sent for line in hub.requests if line.port == "cdn" and line.status == 206)
    hub.reset_counters()
    return staged(site, WEIGHTS), missing


def partial_have(partial: Path) -> list[int]:
    """Where the blocks begin that the journal of *partial* knows."""
    records = partial.with_suffix(".journal").read_bytes().partition(b"\n")[2]
    return [int.from_bytes(records[at : at + 8], "little") for at in range(0, len(records), 24)]


def test_after_a_reboot_every_block_is_proven_and_a_damaged_one_fetched_again(
    hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, missing = interrupted(hub, site)
    start = min(partial_have(partial))
    with partial.open("r+b") as file:
        file.seek(start + 17)
        file.write(b"lost in the power cut")
    monkeypatch.setattr(staging, "boot_id", lambda: "another boot")
    report = run(site)
    assert got(site, report)["action"] == "resumed"
    assert missing < hub.bytes_sent("cdn") <= missing + MIB


def test_damage_that_no_reboot_explains_is_found_by_the_proof_and_fetched_again(hub: LoopbackHub, site: Site) -> None:
    partial, missing = interrupted(hub, site)
    with partial.open("r+b") as file:
        file.seek(min(partial_have(partial)) + 4096)
        file.write(bytes(4096))
    assert run(site).ok
    assert missing < hub.bytes_sent("cdn") <= missing + MIB


def test_a_journal_of_another_file_counts_for_nothing(hub: LoopbackHub, site: Site) -> None:
    partial, _ = interrupted(hub, site)
    inode = partial.read_bytes()
    partial.unlink()
    partial.write_bytes(bytes(len(inode)))
    assert run(site).ok
    assert hub.bytes_sent("cdn") == len(WEIGHTS)


@pytest.mark.parametrize("harm", ["torn", "garbage", "gone", "empty"])
def test_a_damaged_journal_costs_bytes_and_never_the_truth(hub: LoopbackHub, site: Site, harm: str) -> None:
    journal = interrupted(hub, site)[0].with_suffix(".journal")
    data = journal.read_bytes()
    if harm == "gone":
        journal.unlink()
    else:
        journal.write_bytes({"torn": data[:-7], "garbage": b"\xff" * len(data), "empty": b""}[harm])
    assert run(site).ok
    assert hub.bytes_sent("cdn") <= len(WEIGHTS)


def test_a_staging_file_that_was_cut_short_is_filled_again(hub: LoopbackHub, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, _ = interrupted(hub, site)
    os.truncate(partial, MIB)
    monkeypatch.setattr(staging, "boot_id", lambda: "another boot")
    assert run(site).ok


def test_a_new_version_upstream_does_not_change_what_is_fetched(hub: LoopbackHub, site: Site) -> None:
    _, missing = interrupted(hub, site)
    agreed = site.locked_model("m")
    hub.add_revision(REPO, {FILE: b"another version" * MIB})
    report = run(site)
    assert report.ok
    assert site.locked_model("m") == agreed
    assert hub.bytes_sent("cdn") == missing


def test_a_history_that_was_rewritten_upstream_is_said_and_nothing_else_is_fetched(hub: LoopbackHub, site: Site) -> None:
    interrupted(hub, site)
    hub.force_push(REPO, {FILE: b"another history" * MIB})
    report = download(site)
    assert [error.code for error in report.errors] == ["gone"]
    assert left_behind(site) in ([], ["model_info.json"])


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_revision(REPO, {FILE: BIG})
    site = make_site(tmp_path, hub)
    hub.rate_limit_bytes_per_s = 20 * MIB
    child = start(site)
    while hub.bytes_sent("cdn") < 10 * MIB:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    told = json.loads(child.communicate(timeout=30)[0])
    assert time.monotonic() - began < 5
    assert (child.returncode, told["exit_code"]) == (130, 130)
    hub.rate_limit_bytes_per_s = None
    arrived = hub.bytes_sent("cdn")
    report = run(site, BIG)
    assert got(site, report)["action"] == "resumed"
    assert hub.bytes_sent("cdn") - arrived <= len(BIG) - arrived + 8 * MIB
