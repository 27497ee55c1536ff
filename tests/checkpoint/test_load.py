"""The load check on ordinary files: it proves tensors, values and checksums, in a child with an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard.checkpoint import load_check

torch = pytest.importorskip("torch")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"conv.weight": torch.randn(8, 4, 3, 3), "conv.bias": torch.ones(8)}, "step": 7}, path)
    return path


def test_a_good_checkpoint_loads_and_says_what_it_holds(checkpoint: Path) -> None:
    report = load_check(checkpoint, "cpu")
    assert (report.verdict, report.tensors, report.parameters, report.weights_key) == ("ok", 2, 296, "state_dict")
    assert report.finite is True and report.mapped and report.crc_checked_bytes == 296 * 4


def test_cuda_that_is_not_there_is_a_sentence(checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    report = load_check(checkpoint, "cuda")
    assert report.verdict == "unsupported"
    assert report.reasons[0].code == "cuda-missing"
    assert "auto" in report.reasons[0].message


def test_a_flipped_bit_is_found_although_torch_loads_it(checkpoint: Path) -> None:
    from steelyard.checkpoint import inspect
    from steelyard.source import LocalFile

    with LocalFile(checkpoint) as source:
        offset = inspect(source).tensors[0].offset
    assert offset is not None
    with checkpoint.open("r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)[0]
        file.seek(offset + 5)
        file.write(bytes([byte ^ 1]))
    torch.load(checkpoint, weights_only=True)
    report = load_check(checkpoint, "cpu")
    assert report.verdict == "broken"
    assert report.reasons[0].code == "crc-mismatch"
