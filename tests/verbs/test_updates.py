"""What changed upstream, each outcome by its name; nothing held is touched by a check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steelyard.checkpoint import LoadReport
from steelyard.download import download
from steelyard.incoming import load_incoming
from steelyard.report import Report
from steelyard.standins.hub import LoopbackHub
from steelyard.standins.weights import write_torch_zip
from steelyard.update import update
from steelyard.updates import check_updates
from tests.conftest import FILE, REPO, World
from tests.verbs.conftest import LAYER, tree


@pytest.fixture(scope="session")
def reshaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reshaped") / "w.pt"
    specs = {LAYER.format(n): ("float32", (512, 1024) if n else (256, 1024), n) for n in range(9)}
    write_torch_zip(path, {**specs, "model.diffusion_model.extra": ("float16", (7,), 1)}, under="state_dict")
    return path


def check(world: World) -> Report:
    return check_updates(world.site())


def row(world: World) -> dict[str, Any]:
    """What check-updates says of the one model."""
    return check(world).rows[0].as_json()


def flag(hub: LoopbackHub) -> None:
    hub.set_scan(REPO, FILE, "unsafe", imports=("os.system",))


def gate(hub: LoopbackHub) -> None:
    hub.repo(REPO).gated = "manual"


def privatise(hub: LoopbackHub) -> None:
    hub.repo(REPO).private = True


HISTORIES: dict[str, tuple[Callable[[LoopbackHub, Path], object], str, int]] = {
    "nothing new": (lambda hub, new: None, "unchanged", 0),
    "a commit that does not touch our file": (lambda hub, new: hub.add_revision(REPO, {"README.md": b"new words"}), "unchanged", 0),
    "two such commits": (lambda hub, new: [hub.add_revision(REPO, {"README.md": word}) for word in (b"one", b"two")], "unchanged", 0),
    "our file changed": (lambda hub, new: hub.add_revision(REPO, {FILE: new}), "update-available", 0),
    "changed, then another commit": (
        lambda hub, new: [hub.add_revision(REPO, {FILE: new}), hub.add_revision(REPO, {"x": b"y"})],
        "update-available",
        0,
    ),
    "changed and back again": (
        lambda hub, new: [hub.add_revision(REPO, {FILE: new}), hub.add_revision(REPO, {FILE: OLD[0]})],
        "unchanged",
        0,
    ),
    "our file removed": (lambda hub, new: hub.add_revision(REPO, {FILE: None}), "update-available", 0),
    "replaced by a small text": (lambda hub, new: hub.add_revision(REPO, {FILE: b"placeholder"}), "update-available", 0),
    "history rewritten": (lambda hub, new: hub.force_push(REPO, {FILE: new}), "history-rewritten", 1),
    "rewritten with the same file": (lambda hub, new: hub.force_push(REPO, {FILE: OLD[0]}), "history-rewritten", 1),
    "repo renamed": (lambda hub, new: hub.rename_repo(REPO, "MVDream/MVDream2"), "unchanged", 0),
    # Without a token the Hub answers 401 for what is gone as for what is private: it tells strangers neither.
    "repo deleted, no token": (lambda hub, new: hub.delete_repo(REPO), "access-denied", 4),
    "gated": (lambda hub, new: gate(hub), "access-denied", 4),
    "private": (lambda hub, new: privatise(hub), "access-denied", 4),
    "scan flags it": (lambda hub, new: flag(hub), "scan-flagged", 1),
    "500s": (lambda hub, new: hub.faults.add("api", "500"), "unreachable", 4),
    "two 503s and then well": (lambda hub, new: hub.faults.add("api", "503", times=2), "unchanged", 0),
    "a portal's page": (lambda hub, new: hub.faults.add("api", "html"), "unreachable", 4),
    "no network": (lambda hub, new: hub.down(), "unreachable", 4),
    "another branch moved": (lambda hub, new: hub.add_revision(REPO, {FILE: new}, branch="dev"), "unchanged", 0),
}
OLD: list[Path] = []


def without_loading(step: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Runs every step but the load check, which starts torch and is tried elsewhere."""
    return LoadReport("ok", ()) if step is load_incoming else step(*arguments, **options)


@pytest.mark.parametrize("story", HISTORIES)
def test_each_upstream_history_has_its_outcome_and_touches_nothing(held: World, newer: Path, checkpoint: Path, story: str) -> None:
    OLD[:] = [checkpoint]
    happen, verdict, code = HISTORIES[story]
    before = tree(held)
    happen(held.hub, newer)
    report = check(held)
    told = report.rows[0].as_json()
    assert (told["verdict"], report.exit_code) == (verdict, code), told
    assert tree(held) == before
    assert told["held_commit"]
    if verdict == "update-available":
        assert told["changed_files"] == [FILE]
        assert Path(told["note"]).read_text().startswith("# mvdream")


def test_a_deleted_repo_is_gone_to_whom_the_hub_knows(held: World) -> None:
    held.hub.add_token("hf_known", "kim")
    held.environment["HF_TOKEN"] = "hf_known"
    held.hub.delete_repo(REPO)
    done = held.run("check-updates")
    assert (done.code, done.rows[0]["verdict"]) == (4, "gone")
    assert "hf_known" not in done.stdout + done.stderr


def at_revision(world: World, revision: str) -> None:
    (world.home / "steelyard.lock").unlink(missing_ok=True)
    lines = [line for line in world.config.read_text().splitlines() if not line.startswith("revision")]
    lines.insert(lines.index(f'files = ["{FILE}"]'), f'revision = "{revision}"')
    world.config.write_text("\n".join(lines))
    assert download(world.site()).ok


def test_a_moved_tag_is_followed_and_a_fixed_commit_is_only_watched(held: World, newer: Path) -> None:
    commit = row(held)["held_commit"]
    held.hub.repo(REPO).tags["v1"] = commit
    at_revision(held, "v1")
    new = held.hub.add_revision(REPO, {FILE: newer})
    assert row(held)["verdict"] == "unchanged"
    held.hub.repo(REPO).tags["v1"] = new
    assert row(held)["verdict"] == "update-available"
    at_revision(held, commit)
    told = row(held)
    assert told["verdict"] == "unchanged"
    assert told["why"] == f"fixed at {commit[:8]}; main is {new[:8]} and changes {FILE}"
    del held.hub.repo(REPO).tags["v1"]
    held.hub.force_push(REPO, {FILE: newer})
    told = row(held)
    assert told["verdict"] == "history-rewritten"
    assert "is no longer on the Hub" in told["why"]


def test_a_tag_that_was_taken_away_is_gone_and_the_repo_is_not(held: World) -> None:
    held.hub.repo(REPO).tags["v1"] = row(held)["held_commit"]
    at_revision(held, "v1")
    del held.hub.repo(REPO).tags["v1"]
    told = row(held)
    assert (told["verdict"], check(held).exit_code) == ("gone", 4)
    assert "the repo is there, but has no v1 any more" in told["why"]


def test_a_check_of_a_quiet_repo_is_two_requests_for_all_its_models(held: World) -> None:
    held.hub.reset_counters()
    assert row(held)["verdict"] == "unchanged"
    assert len(held.hub.requests) <= 2
    assert held.hub.bytes_sent("cdn") == 0
    more = f'[models.words]\nrepo_id = "{REPO}"\nfiles = ["README.md"]\n'
    held.configure(more)
    assert download(held.site(), ["words"]).ok
    held.hub.reset_counters()
    assert {one.outcome for one in check(held).rows} == {"unchanged"}
    assert len([one for one in held.hub.requests if "/api/" in one.path]) == 1


def test_an_outage_says_since_when_and_when_the_last_answer_came(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_HUB__PATIENCE", "1s")
    assert row(held)["verdict"] == "unchanged"
    held.hub.down()
    first, second = row(held), row(held)
    held.hub.up()
    assert first["verdict"] == second["verdict"] == "unreachable"
    assert first["since"] == second["since"]
    assert second["last_answer"] < second["since"]
    assert second["last_answer"][:16] in second["why"]
    assert row(held)["verdict"] == "unchanged"


def test_a_branch_set_back_to_an_older_commit_is_a_rewritten_history(held: World, newer: Path) -> None:
    older = held.site().lock().models["mvdream"].commit
    held.hub.add_revision(REPO, {FILE: newer})
    assert update(held.site(), "mvdream", run=without_loading).ok
    held.hub.repo(REPO).branches["main"] = older
    told = row(held)
    assert told["verdict"] == "history-rewritten"
    assert f"it was set back to {older[:8]}, which is older; the Hub still has the held one" in told["why"]


def test_a_file_renamed_upstream_is_found_under_its_new_name(held: World, checkpoint: Path) -> None:
    held.hub.add_revision(REPO, {FILE: None, "weights/v2.pt": checkpoint})
    told = row(held)
    assert (told["verdict"], told["compatible"], told["removed_files"]) == ("update-available", False, [FILE])
    assert told["renamed_files"] == {FILE: "weights/v2.pt"}
    assert "Put `weights/v2.pt` in the place of" in Path(told["note"]).read_text()


def test_a_file_deleted_and_added_again_is_what_it_was(held: World, checkpoint: Path) -> None:
    held.hub.add_revision(REPO, {FILE: None})
    held.hub.add_revision(REPO, {FILE: checkpoint})
    assert (row(held)["verdict"], row(held)["changed_files"]) == ("unchanged", [])


def test_two_commits_at_once_are_both_told(held: World, newer: Path) -> None:
    held.hub.add_revision(REPO, {"README.md": b"first"}, title="First words", author="ann")
    held.hub.add_revision(REPO, {FILE: newer}, title="Then weights", author="bob")
    told = row(held)
    assert [(one["title"], one["authors"]) for one in told["commits"]] == [("Then weights", "bob"), ("First words", "ann")]


def test_a_readme_that_is_held_is_no_obstacle_and_a_config_is_for_a_person(held: World) -> None:
    held.configure(files='["*"]')
    (held.home / "steelyard.lock").unlink()
    assert download(held.site()).ok
    held.hub.add_revision(REPO, {"README.md": b"other words"})
    assert (row(held)["verdict"], row(held)["compatible"]) == ("update-available", True)
    held.hub.add_revision(REPO, {"config.json": b"{}"})
    assert update(held.site(), "mvdream", run=without_loading).ok
    held.hub.add_revision(REPO, {"config.json": b'{"a": 1}'})
    told = row(held)
    assert (told["verdict"], told["compatible"]) == ("update-available", None)
    assert "only a person can tell" in told["sentences"][0]


def test_the_note_names_exactly_the_tensors_that_differ(held: World, newer: Path) -> None:
    held.hub.add_revision(REPO, {FILE: newer}, title="Better layers", author="kim")
    held.hub.reset_counters()
    told = row(held)
    assert told["compatible"] is True
    assert set(told["tensors"]["changed"]) == {LAYER.format(3), LAYER.format(7)}
    assert held.hub.bytes_sent("cdn") < 2 << 20
    assert told["fetch_bytes"] < 5_000_000 < told["cost_bytes"]
    note = Path(told["note"]).read_text()
    assert "UNet only (2 of 10 tensors)" in note
    assert "Drop-in" in note
    assert "Better layers" in note
    assert f"`{LAYER.format(3)}`, `{LAYER.format(7)}`" in note
    assert "steelyard rollback mvdream" in note


def test_a_revision_that_a_strict_loader_refuses_is_said_to_be_none_to_drop_in(held: World, reshaped: Path) -> None:
    held.hub.add_revision(REPO, {FILE: reshaped})
    told = row(held)
    assert told["compatible"] is False
    assert told["tensors"]["reshaped"] == [LAYER.format(0)]
    assert told["tensors"]["removed"] == [LAYER.format(9)]
    assert told["tensors"]["added"] == ["model.diffusion_model.extra"]
    assert "Not drop-in" in Path(told["note"]).read_text()
