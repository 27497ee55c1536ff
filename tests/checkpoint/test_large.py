"""What a checkpoint of gigabytes costs to look into, here and over the network, and to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.checkpoint import compare, inspect, load_check
from steelyard.source import LocalFile

from .remote import Remote
from .sd_shape import sd21_tensors, write_sparse

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def five_gb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "sd-v2.1-base-4view.pt"
    write_sparse(path, sd21_tensors(), item=4)
    assert path.stat().st_size > 5_000_000_000
    return path


def test_a_local_five_gigabyte_checkpoint_is_inspected_in_half_a_second_and_sixty_mebibytes(five_gb: Path) -> None:
    program = (
        "import sys, time, json; from pathlib import Path\n"
        "from steelyard.checkpoint import inspect; from steelyard.source import LocalFile\n"
        "started = time.process_time(); found = inspect(LocalFile(Path(sys.argv[1]))); seconds = time.process_time() - started\n"
        "peak = int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024\n"
        "print(json.dumps([found.verdict, len(found.tensors), found.weights_key, seconds, peak]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", program, str(five_gb)], env=environment)) for _ in range(2)]
    verdict, tensors, key, _, peak = runs[0]
    assert (verdict, tensors, key) == ("ok", len(sd21_tensors()), "state_dict")
    assert min(run[3] for run in runs) < 0.5
    assert peak < 60 * MIB


def test_a_remote_five_gigabyte_checkpoint_costs_three_requests_and_less_than_a_mebibyte(five_gb: Path) -> None:
    remote, local = Remote(five_gb), LocalFile(five_gb)
    found, here = inspect(remote), inspect(local)
    assert len(remote.requests) <= 3
    assert remote.bytes_read < MIB
    assert (found.requests, found.bytes_read) == (len(remote.requests), remote.bytes_read)
    assert found.verdict == "ok" and found.codes == ("headers-inferred",)
    assert found.tensors == here.tensors  # places inferred from the directory are the places read from the headers


def test_two_remote_revisions_compare_in_two_mebibytes(five_gb: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    touched = frozenset(name for name in sd21_tensors() if name.startswith("first_stage_model.decoder.mid"))
    write_sparse(other, sd21_tensors(), item=4, other=touched)
    before, after = Remote(five_gb), Remote(other)
    diff = compare(inspect(before), inspect(after))
    assert set(diff.changed or ()) == touched and not diff.unknown
    assert {part.part: part.changed for part in diff.parts} == {"unet": 0, "vae": len(touched), "text encoder": 0}
    assert before.bytes_read + after.bytes_read < 2 * MIB


def test_the_load_check_of_two_gigabytes_stays_below_four_hundred_mebibytes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "half.pt"
    write_sparse(path, sd21_tensors(), item=2, checksums=False)
    assert path.stat().st_size > 2_000_000_000
    seen: list[tuple[str, int, int]] = []
    report = load_check(path, "cpu", progress=lambda *step: seen.append(step))
    assert report.verdict == "ok", report.reasons
    assert report.mapped and report.finite
    assert report.peak_rss_bytes < 400 * MIB
    assert len(report.zero_tensors) == len(sd21_tensors())
    assert {phase for phase, _, _ in seen} == {"import", "load", "scan"}


def test_a_remote_set_is_inspected_through_its_index(tmp_path: Path) -> None:
    from .corpus_good import sharded

    for name, data in sharded().items():
        (tmp_path / name).write_bytes(data)
    index = Remote(tmp_path / "model.safetensors.index.json")
    found = inspect(index, open_beside=lambda name: Remote(tmp_path / name))
    assert (found.verdict, len(found.tensors), {t.shard for t in found.tensors}) == (
        "ok",
        3,
        set(sharded()) - {"model.safetensors.index.json"},
    )
    alone = inspect(index)
    assert (alone.verdict, alone.codes) == ("unsupported", ("shards-unseen",))
