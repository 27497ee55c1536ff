"""A new version reuses what the older one at hand has of it; what was guessed wrong is fetched after all."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from pathlib import Path

import pytest

from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.torch_zip import TensorSpec, second_revision, write_torch_zip

from .world import FILE, MIB, REPO, got, make_site, run

TENSORS: dict[str, TensorSpec] = {f"unet.block.{n}.weight": ("float32", (512, 512), n) for n in range(12)}
TINY: dict[str, TensorSpec] = {f"unet.block.{n}.bias": ("float32", (512,), 100 + n) for n in range(40)}


def updated(hub: LoopbackHub, root: Path, old: bytes, new: bytes) -> Site:
    """A site that holds *old*, has agreed on *new*, and whose hub cache is empty; counters at zero."""
    hub.add_revision(REPO, {FILE: old})
    site = make_site(root, hub)
    assert run(site, old).ok
    hub.add_revision(REPO, {FILE: new})
    listing = site.hub.listing(REPO, "main")
    held = site.locked_model("m")
    assert held is not None
    site.agree("m", dataclasses.replace(held, commit=listing.commit, files=listing.matching((FILE,))))
    hub.reset_counters()
    return site


def zips(root: Path, tensors: dict[str, TensorSpec]) -> Path:
    path = root / "archive.pt"
    write_torch_zip(path, tensors)
    return path


def safetensors(tensors: dict[str, bytes]) -> bytes:
    at, header = 0, {}
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_of_a_torch_zip_only_the_tensors_that_changed_are_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    old = zips(tmp_path, TENSORS | TINY)
    second_revision(old, new := tmp_path / "new.pt", ["unet.block.3.weight"])
    site = updated(hub, tmp_path, old.read_bytes(), new.read_bytes())
    report = run(site, new.read_bytes())
    row = got(site, report)
    assert hub.bytes_sent("cdn") < 3 * MIB
    assert row["bytes_reused"] > 10 * MIB
    assert row["bytes_fetched"] == hub.bytes_sent("cdn")
    assert len([line for line in hub.requests if line.port == "cdn"]) < 25


def test_tensors_are_found_again_at_another_offset(hub: LoopbackHub, tmp_path: Path) -> None:
    old = zips(tmp_path, TENSORS).read_bytes()
    first: dict[str, TensorSpec] = {"a.new.layer": ("float32", (300, 300), 77)}
    new = zips(tmp_path, first | TENSORS).read_bytes()
    site = updated(hub, tmp_path, old, new)
    assert got(site, run(site, new))["bytes_reused"] > 11 * MIB
    assert hub.bytes_sent("cdn") < 2 * MIB


def test_the_archive_may_have_another_name_inside(hub: LoopbackHub, tmp_path: Path) -> None:
    """torch.save names the archive after the file: records are told by what they hold."""
    write_torch_zip(old := tmp_path / "epoch-1.pt", TENSORS)
    write_torch_zip(new := tmp_path / "a-much-longer-name-of-epoch-2.pt", TENSORS | {"unet.block.5.weight": ("float32", (512, 512), 99)})
    site = updated(hub, tmp_path, old.read_bytes(), new.read_bytes())
    assert got(site, run(site, new.read_bytes()))["bytes_reused"] >= 11 * MIB
    assert hub.bytes_sent("cdn") < 2 * MIB


def test_of_safetensors_the_same_names_are_probed_first(hub: LoopbackHub, tmp_path: Path) -> None:
    tensors = {f"layer.{n}": noise(n, MIB + 8) for n in range(10)}
    new = {"added": noise(50, 4096), **tensors, "layer.4": noise(99, MIB + 8)}
    site = updated(hub, tmp_path, safetensors(tensors), safetensors(new))
    assert got(site, run(site, safetensors(new)))["bytes_reused"] > 8 * MIB
    assert hub.bytes_sent("cdn") < 3 * MIB


def test_of_other_formats_pieces_at_the_same_place_are_probed(hub: LoopbackHub, tmp_path: Path) -> None:
    old = noise(1, 40 * MIB)
    new = old[: 20 * MIB] + noise(2, 3 * MIB) + old[23 * MIB :] + noise(3, MIB)
    site = updated(hub, tmp_path, old, new)
    assert got(site, run(site, new))["bytes_reused"] == 32 * MIB
    assert hub.bytes_sent("cdn") < 10 * MIB


def test_a_guess_that_was_wrong_costs_bytes_and_never_the_truth(hub: LoopbackHub, tmp_path: Path) -> None:
    old = noise(1, 24 * MIB)
    new = bytearray(old)
    new[10 * MIB] ^= 1  # far from the middle of its piece, where the probe looks
    site = updated(hub, tmp_path, old, bytes(new))
    report = run(site, bytes(new))
    assert report.ok
    assert hub.bytes_sent("cdn") <= 25 * MIB
    assert list((site.store.ours / "quarantine").rglob("*.partial")) == []


def test_another_file_altogether_costs_a_few_probes(hub: LoopbackHub, tmp_path: Path) -> None:
    old, new = noise(1, 30 * MIB), noise(2, 30 * MIB)
    site = updated(hub, tmp_path, old, new)
    assert "bytes_reused" not in got(site, run(site, new))
    assert hub.bytes_sent("cdn") < len(new) + MIB


def test_an_old_version_that_rotted_does_no_harm(hub: LoopbackHub, tmp_path: Path) -> None:
    old = zips(tmp_path, TENSORS)
    second_revision(old, new := tmp_path / "new.pt", ["unet.block.3.weight"])
    site = updated(hub, tmp_path, old.read_bytes(), new.read_bytes())
    held = site.store.path_of_model("m", FILE)
    with held.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"rot")
    before = held.read_bytes()
    assert run(site, new.read_bytes(), before=before).ok


@pytest.mark.parametrize("sentence", ["503", "ignore range", "html"])
def test_probes_that_fail_do_not_keep_the_file_from_coming(hub: LoopbackHub, tmp_path: Path, sentence: str) -> None:
    old = noise(1, 12 * MIB)
    new = old[: 11 * MIB] + noise(2, MIB)
    site = updated(hub, tmp_path, old, new)
    hub.faults.add("cdn", sentence, times=3)
    assert run(site, new).ok
