"""No copy whole and a piece good nowhere: which tensors are lost, whatever the format."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from steelyard.download import download
from steelyard.repair import repair
from steelyard.standins.hub import LoopbackHub
from tests.conftest import REPO, World

MIB = 1 << 20


def made(folder: Path, kind: str) -> tuple[Path, dict[str, bytes]]:
    """A weights file with three tensors of 4 MiB in all of its kind's own layout, and the bytes of each."""
    path = folder / {"safetensors": "w.safetensors", "zip": "w.pt", "legacy": "old.pth"}[kind]
    begins = {f"layer{n}.weight": struct.pack("<64f", *[n + 1.0] * 64) for n in range(3)}
    if kind == "safetensors":
        header = {name: {"dtype": "F32", "shape": [MIB], "data_offsets": [n * 4 * MIB, (n + 1) * 4 * MIB]} for n, name in enumerate(begins)}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(start * (4 * MIB // 256) for start in begins.values()))
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: torch.full((MIB,), float(n + 1)) for n, name in enumerate(begins)}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    return path, begins


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_tensors_that_are_lost_are_named_and_no_others(world: World, hub: LoopbackHub, tmp_path: Path, kind: str) -> None:
    path, content = made(tmp_path, kind)
    hub.add_revision(REPO, {path.name: path})
    world.configure(files=f'["{path.name}"]')
    assert download(world.site()).exit_code == 0
    weights = world.models / path.name
    shutil.rmtree(world.home / "hf")
    hub.delete_repo(REPO)
    data = weights.read_bytes()
    begins = {name: data.index(start) for name, start in content.items()}
    # A legacy file holds its storages in the order of their keys, which are addresses: any of the three may come last.
    first, *_, last = sorted(begins, key=begins.__getitem__)
    at = begins[last] + 3 * MIB
    assert at // (8 * MIB) == 1, "in the second piece"
    world.flip(weights, at)
    row = next(row for row in repair(world.site()).rows if row.file == path.name)
    assert (row.outcome, row.facts["lost_ranges"]) == ("beyond-repair", [[8 * MIB, len(data)]])
    expected = [name for name, start in begins.items() if start + 4 * MIB > 8 * MIB]
    assert sorted(row.facts["lost_tensors"]) == sorted(expected) and first not in expected
