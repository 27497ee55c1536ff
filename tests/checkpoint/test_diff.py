"""The difference between two files, and what a strict load would say of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from steelyard.checkpoint import Inspection, by_bytes, compare, fits, inspect, signature, signature_from_json, where_it_can
from steelyard.checkpoint.diff import part_of
from steelyard.errors import Stopped
from steelyard.inspecting import inspect_sources
from steelyard.source import LocalFile

from .corpus_good import safetensors_saved

torch = pytest.importorskip("torch")
BASE = {"unet.w": torch.ones(4, 3), "unet.b": torch.zeros(4), "vae.w": torch.full((5,), 2.0)}


def look(path: Path) -> Inspection:
    with LocalFile(path) as source:
        return inspect(source)


def saved(path: Path, value: Any) -> Inspection:
    torch.save(value, path)
    return look(path)


def test_added_removed_reshaped_retyped_and_changed_are_told_apart(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.pt", {**BASE, "old": torch.ones(1), "half": torch.ones(2)})
    after = saved(
        tmp_path / "b.pt", {**BASE, "unet.w": torch.ones(3, 4), "half": torch.ones(2).half(), "vae.w": torch.ones(5), "new": torch.ones(1)}
    )
    diff = compare(before, after)
    assert (diff.added, diff.removed, diff.reshaped, diff.retyped, diff.changed) == (("new",), ("old",), ("unet.w",), ("half",), ("vae.w",))
    assert diff.details["unet.w"] == "4x3 float32 → 3x4 float32"
    assert diff.unchanged == 1 and diff.same is False
    assert {part.part: (part.tensors, part.changed) for part in diff.parts}["vae"] == (1, 1)


def test_the_same_weights_saved_twice_do_not_differ(tmp_path: Path) -> None:
    wrapped = saved(tmp_path / "b.pt", {"state_dict": BASE, "epoch": 3})
    assert compare(saved(tmp_path / "a.pt", BASE), wrapped).same is True


def test_a_view_into_a_changed_storage_is_unknown_not_changed(tmp_path: Path) -> None:
    one, two = torch.arange(20.0), torch.arange(20.0)
    two[15] = -1
    before = saved(tmp_path / "a.pt", {"low": one[:10], "high": one[10:]})
    after = saved(tmp_path / "b.pt", {"low": two[:10], "high": two[10:]})
    diff = compare(before, after)
    assert diff.unknown == ("low", "high") and diff.changed is None and diff.same is None
    with LocalFile(tmp_path / "a.pt") as a, LocalFile(tmp_path / "b.pt") as b:
        deep = compare(before, after, same_bytes=by_bytes(a, b))
    assert (deep.changed, deep.unknown, deep.unchanged) == (("high",), (), 1)


def test_formats_without_checksums_are_unknown_until_their_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_saved(BASE))
    (tmp_path / "b.safetensors").write_bytes(safetensors_saved({**BASE, "vae.w": torch.ones(5)}))
    before, after = look(tmp_path / "a.safetensors"), look(tmp_path / "b.safetensors")
    assert compare(before, after).changed is None
    with LocalFile(tmp_path / "a.safetensors") as a, LocalFile(tmp_path / "b.safetensors") as b:
        assert compare(before, after, same_bytes=by_bytes(a, b)).changed == ("vae.w",)
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            compare(before, after, same_bytes=by_bytes(a, b, stop=stop))


def test_inspect_of_two_reads_the_bytes_where_they_cost_little(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_saved(BASE))
    (tmp_path / "b.safetensors").write_bytes(safetensors_saved({**BASE, "vae.w": torch.ones(5)}))
    row = inspect_sources([str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")], None).rows[0]
    assert (row.facts["changed"], row.facts["unknown"], row.facts["compatible"]) == (["vae.w"], 0, True)
    here = LocalFile(tmp_path / "a.safetensors")

    class Elsewhere:
        name, size_bytes, asked = "elsewhere", here.size_bytes, 0

        def readinto(self, offset: int, buffer: memoryview) -> int:
            self.asked += 1
            return here.readinto(offset, buffer)

        def close(self) -> None:
            here.close()

    far = Elsewhere()
    before = look(tmp_path / "a.safetensors")
    with LocalFile(tmp_path / "b.safetensors") as near:
        same = where_it_can(far, near)
        assert same is not None
        assert far.asked == 0
        assert compare(before, look(tmp_path / "b.safetensors"), same_bytes=same).changed == ("vae.w",)
        assert far.asked == 1
        far.size_bytes = 1 << 30
        assert where_it_can(far, near) is None
    far.close()


def test_the_same_weights_in_two_formats_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_saved(BASE))
    other = saved(tmp_path / "b.pt", BASE)
    with LocalFile(tmp_path / "a.safetensors") as a, LocalFile(tmp_path / "b.pt") as b:
        assert compare(inspect(a), other, same_bytes=by_bytes(a, b)).same is True


def test_parts_have_the_names_users_know() -> None:
    assert part_of("model.diffusion_model.input_blocks.0.0.weight") == "unet"
    assert part_of("first_stage_model.decoder.conv_in.weight") == "vae"
    assert part_of("cond_stage_model.model.ln_final.bias") == "text encoder"
    assert part_of("encoder.layer.0") == "encoder"


def test_fits_says_what_a_strict_load_state_dict_says(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    expected = signature(saved(tmp_path / "old.pt", module.state_dict()))
    cases = {
        "same": module.state_dict(),
        "half": {name: tensor.half() for name, tensor in module.state_dict().items()},
        "missing": {name: tensor for name, tensor in module.state_dict().items() if name != "0.bias"},
        "unexpected": {**module.state_dict(), "2.weight": torch.ones(1)},
        "reshaped": {**module.state_dict(), "0.weight": torch.ones(4, 5)},
        "prefixed": {f"module.{name}": tensor for name, tensor in module.state_dict().items()},
    }
    for name, weights in cases.items():
        fit = fits(expected, saved(tmp_path / f"{name}.pt", weights))
        try:
            module.load_state_dict(weights, strict=True)
            takes = True
        except RuntimeError:
            takes = False
        assert fit.compatible is takes, name
    assert "gained the prefix 'module.'" in fits(expected, look(tmp_path / "prefixed.pt")).sentence
    assert fits(expected, look(tmp_path / "half.pt")).retyped


def test_a_signature_comes_back_from_json_and_a_forged_one_does_not(tmp_path: Path) -> None:
    found = signature(saved(tmp_path / "a.pt", BASE))
    assert signature_from_json(found.as_json()) == found
    with pytest.raises(ValueError, match="digest"):
        signature_from_json({**found.as_json(), "tensors": []})


def test_whether_a_broken_file_fits_is_unknown(tmp_path: Path) -> None:
    expected = signature(saved(tmp_path / "a.pt", BASE))
    (tmp_path / "b.pt").write_bytes(b"not there")
    assert fits(expected, look(tmp_path / "b.pt")).compatible is None
