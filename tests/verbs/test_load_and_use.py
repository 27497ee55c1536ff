"""It loads, its certificate says so, and the user's own code gets a proven path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from steelyard.checkpoint.reasons import VERDICT_OF, ReasonCode
from steelyard.loading import load
from tests.conftest import FILE, REPO, World

torch = pytest.importorskip("torch", reason="the extra steelyard[torch] is not installed")


@pytest.fixture
def held(world: World) -> World:
    assert world.run("download").code == 0
    return world


def use(world: World, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=world.home, env=world.environment, capture_output=True, text=True, check=False)


def test_load_says_what_is_in_it_and_leaves_a_certificate(held: World) -> None:
    done = held.run("load", "--device", "cpu")
    row = done.of(FILE)
    assert (done.code, row["verdict"], row["device"], row["weights_key"]) == (0, "ok", "cpu", "state_dict")
    assert row["tensors"] == 10
    assert row["parameters"] == 10 * 512 * 1024
    assert row["peak_rss_bytes"] < 400 << 20
    certificate = json.loads((held.models / f"{FILE}.steelyard.json").read_text())
    assert certificate["sha256"] in (held.home / "steelyard.lock").read_text()
    assert held.run("verify").code == 0


def test_a_placeholder_in_its_place_does_not_load(held: World) -> None:
    held.weights.write_text("placeholder: download failed")
    done = held.run("load")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "broken")


def test_what_the_load_itself_finds_is_a_verdict_and_hides_no_other_file(
    world: World, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    world.hub.add_revision(REPO, {"a-nan.pt": tmp_path / "nan.pt", "b.pt": checkpoint})
    world.configure(files='["a-nan.pt", "b.pt"]')
    assert world.run("download").code == 0
    done = world.run("load")
    assert (done.code, done.of("a-nan.pt")["verdict"], done.of("b.pt")["verdict"]) == (1, "broken", "ok")
    assert done.of("a-nan.pt")["reasons"][0]["code"] == "values-not-finite"
    slow = world.run("load", "--timeout", "0.01")
    assert {row["reasons"][0]["code"] for row in slow.rows} == {"timeout"}
    monkeypatch.setattr("steelyard.checkpoint.load.available_memory", lambda: 1000)
    small = load(world.site())
    assert [(row.facts["verdict"], row.exit_code) for row in small.rows] == [("too-big", 1), ("too-big", 1)]


def test_every_reason_leads_to_a_verdict() -> None:
    assert set(VERDICT_OF) == set(get_args(ReasonCode))


def test_cuda_where_there_is_none_is_a_sentence(held: World) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = held.run("load", "--device", "cuda")
    assert done.code == 1
    assert done.of(FILE)["verdict"] != "ok"
    assert "CUDA" in json.dumps(done.of(FILE)["reasons"])


def test_the_users_code_gets_a_proven_path_and_the_weights(held: World) -> None:
    done = use(held, "from steelyard import weights, state_dict; print(weights('mvdream')); print(len(state_dict('mvdream')))")
    assert done.stdout.split() == [str(held.weights), "10"], done.stderr


def test_the_users_code_never_gets_a_rotten_file(held: World) -> None:
    held.flip(held.weights, 9 << 20)
    done = use(
        held,
        "from steelyard import weights\nfrom steelyard.errors import Corrupt\ntry:\n    weights('mvdream')\nexcept Corrupt as e: print(e.ranges, e.hint)",
    )
    assert "8388608" in done.stdout, done.stderr
    assert "steelyard repair" in done.stdout
