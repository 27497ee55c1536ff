"""Every file of the corpus gets its verdict, costs little, and executes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steelyard.checkpoint import Inspection, inspect, load_check
from steelyard.source import LocalFile

from .corpus import Case, load_all

torch = pytest.importorskip("torch")
CASES = load_all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


def put(case: Case, folder: Path) -> Path:
    """Write the case into a folder of its own; return the file to inspect."""
    home = folder / case.name.replace("/", "_").replace(" ", "-")
    home.mkdir(exist_ok=True)
    made = case.make(f"touch {folder / 'canary'}")
    files = made if isinstance(made, dict) else {case.file: made}
    for name, data in files.items():
        (home / name).write_bytes(data)
    return home / next(iter(files))


def look(path: Path) -> Inspection:
    with LocalFile(path) as source:
        return inspect(source)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_file_gets_its_verdict_within_two_seconds(case: Case, folder: Path) -> None:
    # Processor time: how long others keep the machine busy is not the file's doing.
    path = put(case, folder)
    started = time.process_time()
    found = look(path)
    seconds = time.process_time() - started
    told = [(reason.code, reason.message) for reason in found.reasons]
    assert found.verdict == case.verdict, told
    if case.code:
        assert case.code in found.codes, told
    else:
        assert all(reason.verdict == "ok" for reason in found.reasons), told
    if case.format:
        assert found.format == case.format
    assert seconds < 2
    assert all(reason.message.isprintable() for reason in found.reasons)
    assert not (folder / "canary").exists()


def test_the_corpus_has_at_least_sixty_files_of_every_kind() -> None:
    assert len(CASES) >= 60
    assert {case.verdict for case in CASES} == {"ok", "broken", "hostile", "untrusted", "suspect", "unsupported"}
    assert len({case.name for case in CASES}) == len(CASES)


def test_no_file_takes_three_hundred_mebibytes(folder: Path) -> None:
    """All files one after the other in one process that holds nothing else; its peak is the peak of the worst."""
    paths = [str(put(case, folder)) for case in CASES]
    program = (
        "import sys; from pathlib import Path\n"
        "from steelyard.checkpoint import inspect; from steelyard.source import LocalFile\n"
        "for line in sys.stdin: inspect(LocalFile(Path(line.strip())))\n"
        "assert 'torch' not in sys.modules\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(paths), text=True, capture_output=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 300 * 1024
    assert not (folder / "canary").exists()


TORCH = [case for case in CASES if case.format in ("torch-zip", "torch-legacy") and case.verdict == "ok"]


@pytest.mark.parametrize("case", TORCH, ids=lambda case: case.name)
def test_what_we_pass_torch_loads_with_the_same_tensors(case: Case, folder: Path) -> None:
    """An ok of ours is never stronger than torch's own safe load, and both see the same names, shapes and dtypes."""
    path = put(case, folder)
    found = look(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in found.weights_path:
        loaded = loaded[key] if isinstance(loaded, dict) else loaded[int(key)]
    if isinstance(loaded, torch.Tensor):
        loaded = {"": loaded}
    elif isinstance(loaded, list):
        loaded = {str(i): tensor for i, tensor in enumerate(loaded)}
    for tensor in found.tensors:
        if tensor.name not in loaded:
            continue  # the parts of a sparse tensor have no name in torch
        real = loaded[tensor.name]
        assert tuple(real.shape) == tensor.shape and str(real.dtype) == f"torch.{tensor.dtype}"
        if not real.is_quantized:
            assert tuple(real.stride()) == tensor.stride
    assert {name for name, value in loaded.items() if isinstance(value, torch.Tensor) and not value.is_sparse} <= {
        t.name for t in found.tensors
    }


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.verdict in ("hostile", "untrusted", "broken")][::9], ids=lambda case: case.name
)
def test_load_check_never_hands_torch_what_inspect_refused(case: Case, folder: Path) -> None:
    report = load_check(put(case, folder), "cpu")
    assert report.verdict == ("broken" if case.verdict == "broken" else "untrusted")
    assert report.device == "" and report.reasons
    assert not (folder / "canary").exists()


def test_the_canary_would_sing(folder: Path, tmp_path: Path) -> None:
    """The proof that the canary proves something: run by an unsafe load, the same file leaves it."""
    case = next(case for case in CASES if case.name == "hostile: a bare pickle")
    made = case.make(f"touch {tmp_path / 'canary'}")
    assert isinstance(made, bytes)
    import pickle

    pickle.loads(made)
    assert (tmp_path / "canary").exists()
