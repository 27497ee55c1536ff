"""Who takes an update: nobody, who approved just that, or the nightly round where nothing speaks against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steelyard.checkpoint import LoadReport
from steelyard.download import download
from steelyard.errors import UsageError
from steelyard.incoming import load_incoming
from steelyard.manifest import record_digest
from steelyard.standins.weights import second_revision, write_torch_zip
from steelyard.update import rollback, update
from steelyard.updates import check_updates
from tests.conftest import FILE, REPO, World

LAYER = "model.diffusion_model.l{}.weight"


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("newer") / "w.pt"
    second_revision(checkpoint, path, {LAYER.format(3)})
    return path


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("newest") / "w.pt"
    second_revision(checkpoint, path, {LAYER.format(5)})
    return path


@pytest.fixture
def held(world: World) -> World:
    assert download(world.site()).ok
    return world


def without_loading(step: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    return LoadReport("ok", ()) if step is load_incoming else step(*arguments, **options)


def says(world: World, policy: str) -> dict[str, Any]:
    """What check-updates says under *policy*."""
    text = world.config.read_text()
    world.config.write_text(
        text.replace(f'repo_id = "{REPO}"', f'repo_id = "{REPO}"\nupdate = "{policy}"') if "update =" not in text else text
    )
    return check_updates(world.site()).rows[0].as_json()


def commit_of(world: World) -> str:
    return world.site().lock().models["mvdream"].commit


def test_the_plan_is_canonical_and_the_same_for_the_same_upstream(held: World, newer: Path) -> None:
    new = held.hub.add_revision(REPO, {FILE: newer})
    first, second = says(held, "approve"), says(held, "approve")
    assert first["plan"] == second["plan"]
    plan = json.loads(Path(first["plan_path"]).read_text())
    assert plan["digest"] == first["plan"] == record_digest(plan)
    assert (plan["held_commit"], plan["upstream_commit"]) == (commit_of(held), new)
    assert plan["fetched"] == {
        FILE: {"size_bytes": newer.stat().st_size, "sha256": held.hub.repo(REPO).commits[new].files[FILE].content.sha256}
    }
    assert f"--plan {first['plan']}" in Path(first["note"]).read_text()


def test_what_was_approved_is_taken_once_and_a_second_click_is_no_error(held: World, newer: Path) -> None:
    new = held.hub.add_revision(REPO, {FILE: newer})
    plan = says(held, "approve")["plan"]
    assert update(held.site(), "mvdream", plan=plan, run=without_loading).rows[0].outcome == "updated"
    assert commit_of(held) == new
    again = update(held.site(), "mvdream", plan=plan.removeprefix("sha256:"), run=without_loading)
    assert (again.exit_code, again.rows[0].outcome) == (0, "unchanged")


def test_another_plan_is_refused_and_what_is_there_now_is_named(held: World, newer: Path, newest: Path) -> None:
    before = commit_of(held)
    held.hub.add_revision(REPO, {FILE: newer})
    approved = says(held, "approve")["plan"]
    held.hub.add_revision(REPO, {FILE: newest})
    held.hub.reset_counters()
    report = update(held.site(), "mvdream", plan=approved, run=without_loading)
    assert (report.exit_code, report.errors[0].code) == (3, "plan-changed")
    assert commit_of(held) == before
    assert held.hub.bytes_sent("cdn") == 0
    now = json.loads(Path(report.errors[0].facts["path"]).read_text())["digest"]
    assert now != approved
    assert now in report.errors[0].hint
    assert update(held.site(), "mvdream", plan=now, run=without_loading).rows[0].outcome == "updated"


@pytest.mark.parametrize("digest", ["", "sha256:", "abc", "0" * 63, "md5:" + "0" * 64])
def test_what_is_no_digest_is_wrong_usage(held: World, digest: str) -> None:
    with pytest.raises(UsageError, match="not a plan's digest"):
        update(held.site(), "mvdream", plan=digest)


def test_a_plan_and_a_revision_contradict_each_other(held: World) -> None:
    done = held.run("update", "mvdream", "--plan", "0" * 64, "--to", "main")
    assert (done.code, done.errors[0]["code"]) == (2, "usage")


REASONS: dict[str, tuple[Callable[[World, Path], object], str]] = {
    "drop-in and safe": (lambda world, new: None, ""),
    "not scanned yet": (lambda world, new: world.hub.set_scan(REPO, FILE, "queued"), "the Hub's scan says queued of it, not safe"),
    "a config changed too": (
        lambda world, new: world.hub.add_revision(REPO, {"config.json": b"{}"}),
        "nobody can tell whether it is drop-in",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_auto_says_what_speaks_against_it(held: World, newer: Path, case: str) -> None:
    held.configure(files='["*"]')
    held.hub.add_revision(REPO, {"config.json": b"[]"})
    (held.home / "steelyard.lock").unlink()
    assert download(held.site()).ok
    held.hub.add_revision(REPO, {FILE: newer})
    happen, reason = REASONS[case]
    happen(held, newer)
    told = says(held, "auto")
    assert told["not_taken"].startswith(reason) if reason else told["not_taken"] == ""
    assert (reason in told["why"]) if reason else "not taken" not in told["why"]


def test_auto_does_not_take_what_does_not_fit(held: World, tmp_path: Path) -> None:
    write_torch_zip(tmp_path / "w.pt", {LAYER.format(n): ("float32", (512, 1024), n) for n in range(9)}, under="state_dict")
    held.hub.add_revision(REPO, {FILE: tmp_path / "w.pt"})
    told = says(held, "auto")
    assert "it is not drop-in" in told["not_taken"]
    report = update(held.site(), "mvdream", plan=told["plan"], only_drop_in=True, run=without_loading)
    assert (report.exit_code, report.errors[0].code) == (1, "not-loadable")
    assert "1 missing" in report.errors[0].message


def test_auto_does_not_undo_a_rollback_and_does_not_try_again_what_did_not_load(held: World, newer: Path, newest: Path) -> None:
    new = held.hub.add_revision(REPO, {FILE: newer})
    assert update(held.site(), "mvdream", run=without_loading).ok
    assert rollback(held.site(), "mvdream").ok
    assert "you went back from it" in says(held, "auto")["not_taken"]
    assert update(held.site(), "mvdream").rows[0].facts["commit"] == new, "a person may"
    assert rollback(held.site(), "mvdream").ok
    held.hub.add_revision(REPO, {FILE: newest})
    plan = says(held, "auto")
    assert plan["not_taken"] == ""

    def broken(step: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
        return LoadReport("broken", ()) if step is load_incoming else step(*arguments, **options)

    assert update(held.site(), "mvdream", plan=plan["plan"], only_drop_in=True, run=broken).exit_code == 1
    assert "it was tried on" in says(held, "auto")["not_taken"]


def test_a_fixed_commit_is_never_taken_further(held: World) -> None:
    from steelyard.policy import against_taking

    locked = held.site().lock().models["mvdream"]
    import dataclasses

    fixed = dataclasses.replace(locked, revision=locked.commit)
    facts = {"verdict": "update-available", "compatible": True, "scan": "safe"}
    assert against_taking(held.site(), "mvdream", fixed, facts) == "a fixed commit is only watched"
    assert against_taking(held.site(), "mvdream", locked, facts) == ""
