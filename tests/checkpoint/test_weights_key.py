"""Where the weights are: most tensor bytes win, optimizer state never does, the seed's order breaks ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steelyard.checkpoint import Inspection, inspect
from steelyard.source import LocalFile

torch = pytest.importorskip("torch")
W = {"a.weight": torch.ones(100), "a.bias": torch.ones(10)}
BIG = {"a.weight": torch.ones(300)}
ADAM = {"state": {0: {"exp_avg": torch.ones(5000), "exp_avg_sq": torch.ones(5000)}}, "param_groups": [{"params": [0]}]}


def found_in(tmp_path: Path, value: Any) -> Inspection:
    torch.save(value, tmp_path / "x.pt")
    with LocalFile(tmp_path / "x.pt") as source:
        return inspect(source)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (W, None),
        ({"state_dict": W, "epoch": 1}, "state_dict"),
        ({"model": W, "optimizer": ADAM}, "model"),
        ({"optimizer": ADAM, "model_state": W, "step": torch.tensor(3)}, "model_state"),
        ({"net": W, "solver": ADAM}, "net"),
        ({"model": {"state_dict": W, "cfg": {}}, "optimizer": ADAM}, "model.state_dict"),
        ({"ema": dict(W), "model": dict(W)}, "model"),
        ({"model": dict(W), "state_dict": dict(W)}, "state_dict"),
        ({"ema": dict(W), "module": dict(W)}, "module"),
        ({"state_dict": W, "generator": BIG}, "generator"),
        ({"optimizer_states": [ADAM], "state_dict": W}, "state_dict"),
        ({"a": torch.ones(1000), "extra": W}, None),
        (torch.ones(3), None),
    ],
)
def test_the_weights_are_where_most_bytes_are(tmp_path: Path, value: Any, key: str | None) -> None:
    assert found_in(tmp_path, value).weights_key == key


def test_what_else_is_in_there_is_told_in_bytes(tmp_path: Path) -> None:
    found = found_in(tmp_path, {"model": W, "optimizer": ADAM, "ema": dict(W)})
    assert dict(found.others) == {"optimizer": 40_000, "ema": 440}
    assert (found.other_bytes, found.other_tensors, len(found.tensors), found.tensor_bytes) == (40_440, 4, 2, 440)


def test_a_key_with_a_dot_is_one_step_of_the_path(tmp_path: Path) -> None:
    assert found_in(tmp_path, {"model.ema": W}).weights_path == ("model.ema",)
