"""The load check: it proves tensors, values and checksums, in a child with an end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from steelyard.checkpoint import inspect, load_check
from steelyard.checkpoint.child import child_environment, run_child
from steelyard.errors import Missing, Stopped
from steelyard.source import LocalFile

from .corpus_good import sharded

torch = pytest.importorskip("torch")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"conv.weight": torch.randn(8, 4, 3, 3), "conv.bias": torch.ones(8)}, "step": 7}, path)
    return path


def test_a_good_checkpoint_loads_and_says_what_it_holds(checkpoint: Path) -> None:
    report = load_check(checkpoint, "auto")
    row = report.as_json()
    assert (row["verdict"], row["tensors"], row["parameters"], row["weights_key"]) == ("ok", 2, 296, "state_dict")
    assert report.finite is True and report.mapped and report.crc_checked_bytes == 296 * 4 and report.peak_rss_bytes > 10**8
    if not torch.cuda.is_available():
        assert row["device"] == "cpu" and row["device_reason"].startswith("auto: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_a_sentence(checkpoint: Path) -> None:
    report = load_check(checkpoint, "cuda")
    assert (report.verdict, report.reasons[0].code) == ("unsupported", "cuda-missing")
    assert "--device cpu" in report.reasons[0].message


def test_a_flipped_bit_is_found_although_torch_loads_it(checkpoint: Path) -> None:
    with LocalFile(checkpoint) as source:
        offset = inspect(source).tensors[0].offset
    assert offset is not None
    with checkpoint.open("r+b") as file:
        file.seek(offset + 1)
        byte = file.read(1)[0]
        file.seek(offset + 1)
        file.write(bytes([byte ^ 1]))
    torch.load(checkpoint, weights_only=True)
    report = load_check(checkpoint, "cpu")
    assert (report.verdict, report.reasons[0].code) == ("broken", "crc-mismatch")
    assert str(offset) in report.reasons[0].message


def test_nan_and_infinity_are_found_in_every_float_type(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    weights = {
        "good": torch.ones(9),
        "nan": torch.tensor([1.0, nan]),
        "inf": torch.tensor([-inf]).half(),
        "brain": torch.tensor([nan]).bfloat16(),
        "f8": torch.tensor([nan]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(0, inf)]),
        "double": torch.full((3,), inf, dtype=torch.float64),
        "zero": torch.zeros(5),
        "zero int": torch.zeros(3, dtype=torch.int32),
        "minus zero": torch.tensor([-0.0]),
        "flags": torch.tensor([True]),
    }
    torch.save(weights, tmp_path / "w.pt")
    report = load_check(tmp_path / "w.pt", "cpu")
    assert (report.verdict, report.finite, report.reasons[0].code) == ("broken", False, "values-not-finite")
    assert set(report.non_finite) == {"nan", "inf", "brain", "f8", "complex", "double"}
    assert set(report.zero_tensors) == {"zero", "zero int", "minus zero"}


def test_a_nan_in_a_view_is_blamed_on_the_view(tmp_path: Path) -> None:
    base = torch.ones(20)
    base[15] = float("nan")
    torch.save({"low": base[:10], "high": base[10:], "turned": torch.ones(3, 4).t()}, tmp_path / "w.pt")
    assert load_check(tmp_path / "w.pt", "cpu").non_finite == ("high",)


def test_a_sharded_set_loads_shard_by_shard(tmp_path: Path) -> None:
    for name, data in sharded().items():
        (tmp_path / name).write_bytes(data)
    report = load_check(tmp_path / "model.safetensors.index.json", "cpu")
    assert (report.verdict, report.tensors, report.finite) == ("ok", 3, True), report.reasons


def test_a_compressed_checkpoint_is_read_whole_not_mapped(tmp_path: Path) -> None:
    from .corpus_odd import _compressed

    (tmp_path / "w.pt").write_bytes(_compressed())
    report = load_check(tmp_path / "w.pt", "cpu")
    assert report.verdict == "ok" and not report.mapped
    assert {"not-mapped", "compressed-storage"} <= {reason.code for reason in report.reasons}


def test_an_allowed_global_is_replaced_by_an_inert_stand_in(tmp_path: Path) -> None:
    import argparse

    torch.save({"args": argparse.Namespace(lr=1), "model": {"w": torch.ones(3)}}, tmp_path / "w.pt")
    assert load_check(tmp_path / "w.pt", "cpu").verdict == "untrusted"
    report = load_check(tmp_path / "w.pt", "cpu", allow_globals=frozenset({"argparse.Namespace"}))
    assert (report.verdict, report.tensors) == ("ok", 1), report.reasons


def test_an_allowance_never_lifts_a_dangerous_name(tmp_path: Path) -> None:
    from .corpus import load_all

    case = next(case for case in load_all() if case.name == "hostile: os.system")
    made = case.make(f"touch {tmp_path / 'canary'}")
    assert isinstance(made, bytes)
    (tmp_path / "w.pt").write_bytes(made)
    report = load_check(tmp_path / "w.pt", "cpu", allow_globals=frozenset({"os.system", "posix.system"}))
    assert report.verdict == "untrusted" and not (tmp_path / "canary").exists()


def test_too_little_memory_is_refused_with_numbers_before_anything_starts(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(50_000_000 // 4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    started = time.monotonic()
    report = load_check(tmp_path / "w.pt", "cpu", max_memory_bytes=200_000_000)
    assert (report.verdict, report.reasons[0].code) == ("too-big", "memory-need")
    assert "0.4 GB" in report.reasons[0].message and "0.2 GB" in report.reasons[0].message
    assert time.monotonic() - started < 1


def _child(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **limits: object) -> object:
    """Run *program* in the load check's place."""
    (tmp_path / "stand_in_child.py").write_text(program)
    from steelyard.checkpoint import child

    monkeypatch.setattr(child, "child_environment", lambda: {**child_environment(), "PYTHONPATH": str(tmp_path)})
    options: dict[str, object] = {"timeout_s": 20.0, "max_memory_bytes": None, **limits}
    return run_child({}, module="stand_in_child", **options)  # type: ignore[arg-type]


def test_a_child_that_hangs_ends_at_the_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    outcome = _child("import time; time.sleep(60)", tmp_path, monkeypatch, timeout_s=0.5)
    assert outcome.reasons[0].code == "timeout" and time.monotonic() - started < 5  # type: ignore[attr-defined]


def test_a_child_that_grows_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _child("import time; held = bytearray(300_000_000); time.sleep(60)", tmp_path, monkeypatch, max_memory_bytes=200_000_000)
    assert (outcome.verdict, outcome.reasons[0].code) == ("too-big", "memory-limit")  # type: ignore[attr-defined]


def test_a_child_that_dies_is_a_verdict_not_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path, monkeypatch)
    assert (outcome.verdict, outcome.reasons[0].message) == ("broken", "the loading process died of SIGSEGV")  # type: ignore[attr-defined]
    outcome = _child("raise ValueError('odd')", tmp_path, monkeypatch)
    assert "odd" in outcome.reasons[0].message  # type: ignore[attr-defined]


def test_a_stop_ends_the_child_at_once(checkpoint: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.4, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        load_check(checkpoint, "cpu", stop=stop)
    assert time.monotonic() - started < 3
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True).stdout
    assert "load_child" not in children


def test_the_child_sees_no_secret_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "SSH_AUTH_SOCK", "HTTPS_PROXY", "HOME"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in child_environment().values()


def test_a_torch_in_the_current_folder_is_not_imported(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert load_check(checkpoint, "cpu").verdict == "ok"
    assert not (tmp_path / "canary").exists()


def test_without_torch_it_is_unsupported_and_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = load_check(checkpoint)
    assert (report.verdict, report.reasons[0].code) == ("unsupported", "torch-missing") and "steelyard[torch]" in report.reasons[0].message


def test_a_placeholder_never_counts_as_loaded(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("placeholder")
    report = load_check(tmp_path / "w.pt")
    assert (report.verdict, report.reasons[0].code, report.finite) == ("broken", "placeholder-text", None)
    with pytest.raises(Missing):
        load_check(tmp_path / "absent.pt")


def test_neither_inspect_nor_the_package_imports_torch() -> None:
    program = "import steelyard.checkpoint, sys; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_keys_that_are_no_text_and_sparse_tensors_load_as_the_header_tells(tmp_path: Path) -> None:
    import torch

    content = {("a", 1): torch.ones(2), ("b", 1): torch.ones(2), 1: torch.ones(1), "1": torch.ones(3), b"x": torch.ones(1)}
    sparse = {"coo": torch.eye(4).to_sparse(), "csr": torch.eye(4).to_sparse_csr(), "csc": torch.eye(4).to_sparse_csc()}
    torch.save(content | sparse, tmp_path / "w.pt")
    report = load_check(tmp_path / "w.pt", "cpu")
    assert (report.verdict, report.tensors) == ("ok", 5 + 2 + 3 + 3), report.reasons
