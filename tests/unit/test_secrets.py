"""What a curious user of the machine can find: no secret in any file or word of ours, nothing that others may write, no link followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from steelyard.backup import backup
from steelyard.disk import write_atomically
from steelyard.download import download
from steelyard.errors import Refused
from tests.conftest import World

TOKEN, KEY = "hf_tortureTortureTortureTorture", "AKIATORTURETORTURE/secretsecretsecret"


@pytest.fixture
def guarded(world: World) -> World:
    """A world whose Hub asks for a token, with credentials of S3 in the environment."""
    world.hub.add_token(TOKEN, "kim")
    world.hub.repo("MVDream/MVDream").private = True
    world.environment |= {"HF_TOKEN": TOKEN, "AWS_ACCESS_KEY_ID": "AKIATORTURE", "AWS_SECRET_ACCESS_KEY": KEY}
    return world


def test_no_file_and_no_word_of_ours_holds_a_secret(guarded: World) -> None:
    for arguments in (["download"], ["backup"], ["doctor"]):
        done = guarded.run(*arguments)
        assert TOKEN not in done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
    for path in guarded.home.rglob("*"):
        if path.is_file() and path.stat().st_size < 5 << 20:
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            assert KEY.encode() not in content, path


def test_nothing_we_make_is_writable_by_others(world: World) -> None:
    before = os.umask(0)  # the worst case: what we ask for is what is made
    try:
        assert download(world.site()).ok
        assert backup(world.site()).ok
    finally:
        os.umask(before)
    found = [path for path in world.home.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o022]
    assert [path.relative_to(world.home) for path in found if path != world.config] == []


def test_a_link_planted_where_a_record_is_written_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".manifest.json.{os.getpid()}.partial").symlink_to(victim)
    with pytest.raises(Refused):
        write_atomically(tmp_path / "manifest.json", b"theirs")
    assert victim.read_text() == "mine"
