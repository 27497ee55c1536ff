"""Bad input and bad days: one sentence, the next step, the exit code of CONTRACT.md, and nothing half-written."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import FILE, REPO, World

COMMANDS = ["download", "verify", "load", "backup", "repair", "drill", "check-updates", "status"]


def nothing_published(world: World) -> None:
    assert not world.weights.exists()
    assert not list(world.home.glob("hf/hub/models--*/snapshots/*/*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_config_each_command_says_where_it_looked(world: World, command: str) -> None:
    world.config.unlink()
    done = world.run(command)
    assert done.code == 2
    assert str(world.config) in done.errors[0]["message"]
    assert "steelyard init" in done.errors[0]["hint"]


@pytest.mark.parametrize("command", COMMANDS)
def test_broken_toml_is_exit_2(world: World, command: str) -> None:
    world.config.write_text("[store\n")
    done = world.run(command)
    assert (done.code, done.json["exit_code"], done.json["ok"], done.json["command"]) == (2, 2, False, command)


@pytest.mark.parametrize("command", [one for one in COMMANDS if one != "status"])
def test_an_unknown_model_names_the_known_ones(world: World, command: str) -> None:
    done = world.run(command, "nosuch")
    assert done.code == 2
    assert "mvdream" in done.errors[0]["message"]


@pytest.mark.parametrize(
    "arguments",
    [["verify", "--copy", "tape"], ["backup", "--to", "tape"], ["repair", "--copy", "tape"], ["restore", "mvdream", "--from", "tape"]],
)
def test_an_unknown_copy_names_the_known_ones(world: World, arguments: list[str]) -> None:
    done = world.run(*arguments)
    assert done.code == 2
    assert "usb" in done.errors[0]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--nope"],
        ["verify", "--quick", "--deep"],
        ["load", "--device", "tpu"],
        ["load", "--timeout", "-1"],
        ["load", "--timeout", "nan"],
        ["nosuch"],
        ["restore"],
        ["inspect"],
    ],
)
def test_wrong_usage_is_exit_2_in_json_too(world: World, arguments: list[str]) -> None:
    done = world.run(*arguments)
    assert done.code == 2
    assert done.errors[0]["hint"]


@pytest.mark.parametrize(
    "fault, code, word",
    [
        ("401", 4, "HF_TOKEN"),
        ("403", 4, "token"),
        ("404", 4, "no such repo"),
        ("500", 4, "500"),
        ("html", 4, "not what a Hub sends"),
        ("garbage json", 4, "not what a Hub sends"),
    ],
)
def test_a_hub_that_fails_is_a_sentence(world: World, fault: str, code: int, word: str) -> None:
    world.hub.faults.add("api", fault)
    done = world.run("download")
    assert done.code == code
    error = done.errors[0]
    assert word in error["message"] + error["hint"]
    assert error["hint"]
    nothing_published(world)


@pytest.mark.parametrize("fault", ["401", "403", "404", "500", "html", "close"])
def test_a_file_that_can_not_be_had_leaves_nothing_under_its_name(world: World, fault: str) -> None:
    world.hub.faults.add("resolve", fault)
    done = world.run("download")
    assert done.code == 4
    assert done.errors[0]["hint"]
    nothing_published(world)


def test_no_network_is_exit_4_and_what_is_held_stays_usable(world: World) -> None:
    world.hub.down()
    done = world.run("download")
    assert done.code == 4
    assert done.errors[0]["code"] == "unreachable"
    world.hub.up()
    assert world.run("download").code == 0
    world.hub.down()
    assert world.run("download").rows[0]["action"] == "unchanged"
    updates = world.run("check-updates")
    assert updates.code == 4
    assert updates.rows[0]["verdict"] == "unreachable"


def test_an_hf_endpoint_that_is_no_address_stops_only_who_asks_the_hub(world: World) -> None:
    assert world.run("download").code == 0
    world.environment["HF_ENDPOINT"] = "huggingface.co"
    for command in (["check-updates"], ["update", "mvdream"], ["inspect", f"hf://{REPO}/{FILE}"]):
        done = world.run(*command)
        assert done.code == 2, command
        assert "HF_ENDPOINT" in done.errors[0]["message"]
    for command in (["verify"], ["status"], ["backup"], ["restore", "mvdream"]):
        assert world.run(*command).code == 0, command


def test_no_space_is_refused_before_the_first_byte(world: World) -> None:
    world.configure(min_free="900 TB")
    done = world.run("download")
    assert done.code == 3
    assert done.errors[0]["code"] == "no-space"
    assert done.rows[0]["action"] == "refused"
    assert world.hub.bytes_sent("cdn") == 0
    nothing_published(world)


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that even root can't write: a tmpfs mounted read-only."""
    folder = tmp_path / "ro"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_read_only_models_folder_is_exit_3(world: World, read_only_folder: Path) -> None:
    world.environment["STEELYARD_STORE__MODELS"] = str(read_only_folder)
    done = world.run("download")
    assert done.code == 3
    assert done.errors[0]["code"] == "read-only"
    assert not any(read_only_folder.iterdir())


def test_a_drive_that_is_not_mounted_is_exit_3_by_name_and_skipped_in_a_round(world: World) -> None:
    assert world.run("download").code == 0
    world.configure(f'[replicas.drive]\nkind = "mount"\npath = "{world.home}/mnt/backup"\nmount_point = "{world.home}/mnt"\n')
    (world.home / "mnt").mkdir()
    asked = world.run("backup", "--to", "drive")
    assert asked.code == 3
    assert asked.errors[0]["code"] == "mount-absent"
    assert not any((world.home / "mnt").iterdir())
    assert world.run("verify", "--copy", "drive").code == 3
    assert world.run("restore", "mvdream", "--from", "drive").code == 3
    a_round = world.run("backup")
    assert a_round.code == 0
    assert next(row for row in a_round.rows if row["copy"] == "drive")["action"] == "skipped"
    assert not any((world.home / "mnt").iterdir())


def test_nothing_held_yet_says_what_to_run(world: World) -> None:
    for command in ("backup", "load", "repair", "check-updates", "drill"):
        done = world.run(command)
        assert done.code == 1, command
        assert "steelyard" in done.errors[0]["hint"]
    verdicts = {row["verdict"] for row in world.run("verify").rows}
    assert verdicts == {"missing"}


def test_a_config_pointed_at_another_repo_does_not_mix_with_the_lock(world: World) -> None:
    assert world.run("download").code == 0
    world.config.write_text(world.config.read_text().replace(REPO, "Other/Repo"))
    done = world.run("download")
    assert done.code == 2
    assert done.errors[0]["code"] == "lock-mismatch"


def test_a_damaged_lock_is_exit_1_and_nothing_is_fetched(world: World) -> None:
    assert world.run("download").code == 0
    lock = world.home / "steelyard.lock"
    lock.write_text(lock.read_text().replace('"size_bytes": 2', '"size_bytes": 3', 1))
    world.hub.reset_counters()
    for command in ("download", "verify", "backup", "repair"):
        done = world.run(command)
        assert (done.code, done.errors[0]["code"]) == (1, "bad-record"), command
    assert world.hub.bytes_sent() == 0


def test_inspect_of_what_is_not_there_is_a_sentence(world: World) -> None:
    assert world.run("inspect", "/no/such/file").code == 1
    assert world.run("inspect", str(world.home)).code == 1
    assert world.run("inspect", "hf://broken").code == 2
    assert world.run("inspect", f"hf://{REPO}/no-such.pt").code == 4


def test_a_second_run_says_who_holds_the_lock(world: World) -> None:
    world.hub.rate_limit_bytes_per_s = 2e6
    first = world.start("download", "--json")
    try:
        for line in first.stderr:  # type: ignore[union-attr]
            if "files," in line:
                break
        second = world.run("download")
        assert second.code == 3
        assert second.errors[0]["code"] == "locked"
        assert str(first.pid) in second.errors[0]["message"]
    finally:
        first.terminate()
        assert first.wait(timeout=20) == 130
    world.hub.rate_limit_bytes_per_s = None
    done = world.run("download")
    assert done.code == 0
    assert done.of(FILE)["action"] in {"resumed", "downloaded"}
