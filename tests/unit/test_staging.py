"""A partial goes on where it was, and believes nothing after a reboot."""

import os
from pathlib import Path

import pytest

from steelyard import staging
from steelyard.pieces import MIB
from steelyard.staging import Partial

SIZE = 6 * MIB + 5
ID = "ab" * 32


def open_partial(folder: Path, identity: str = ID, size: int = SIZE) -> Partial:
    return Partial(folder, "w.pt", identity, size)


def test_what_was_recorded_is_there_at_the_next_start(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.put(0, os.urandom(MIB))
        partial.put(3 * MIB, os.urandom(MIB))
        assert partial.frontier == MIB
    with open_partial(tmp_path) as partial:
        assert partial.have() == ((0, MIB), (3 * MIB, 4 * MIB))
        assert partial.missing() == ((MIB, 3 * MIB), (4 * MIB, SIZE))
        partial.put(MIB, os.urandom(2 * MIB))
        assert partial.frontier == 4 * MIB


def test_bytes_written_but_not_recorded_do_not_count(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.write(0, b"x" * MIB)
    with open_partial(tmp_path) as partial:
        assert partial.have() == ()


def test_after_a_reboot_only_blocks_whose_bytes_still_hold_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_partial(tmp_path) as partial:
        partial.put(0, os.urandom(MIB))
        partial.put(MIB, os.urandom(MIB))
        path = partial.path
    with path.open("r+b") as file:  # the page of the second block never reached the disk
        file.seek(MIB + 77)
        file.write(b"\0" * 100)
    monkeypatch.setattr(staging, "boot_id", lambda: "another boot")
    with open_partial(tmp_path) as partial:
        assert partial.have() == ((0, MIB),)


@pytest.mark.parametrize("spoil", [b"", b"not json\n", b'{"identity": "other"}\n'])
def test_a_spoiled_journal_means_starting_over_and_no_error(tmp_path: Path, spoil: bytes) -> None:
    with open_partial(tmp_path) as partial:
        partial.put(0, os.urandom(MIB))
        journal = partial.journal
    journal.write_bytes(spoil)
    with open_partial(tmp_path) as partial:
        assert partial.have() == ()


def test_a_torn_last_record_is_dropped_and_the_others_hold(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.put(0, os.urandom(MIB))
        partial.put(MIB, os.urandom(MIB))
        journal = partial.journal
    journal.write_bytes(journal.read_bytes()[:-7])
    with open_partial(tmp_path) as partial:
        assert partial.have() == ((0, MIB),)


def test_another_content_does_not_share_a_partial(tmp_path: Path) -> None:
    with open_partial(tmp_path) as partial:
        partial.put(0, os.urandom(MIB))
    with open_partial(tmp_path, identity="cd" * 32) as other:
        assert other.have() == ()


def test_publishing_moves_what_stood_there_aside_first(tmp_path: Path) -> None:
    final = tmp_path / "final.pt"
    final.write_bytes(b"old")
    kept = []
    with open_partial(tmp_path / "staging", size=3) as partial:
        partial.put(0, b"new")
        partial.publish(final, aside=lambda old: kept.append(old.read_bytes()))
    assert final.read_bytes() == b"new"
    assert kept == [b"old"]
    assert not list((tmp_path / "staging").iterdir())


def test_a_planted_link_does_not_redirect_our_writes(tmp_path: Path) -> None:
    from steelyard.errors import SteelyardError

    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path, _ = staging.partial_paths(tmp_path, "w.pt", ID)
    path.symlink_to(victim)
    with pytest.raises(SteelyardError):
        open_partial(tmp_path)
    assert victim.read_bytes() == b"precious"
