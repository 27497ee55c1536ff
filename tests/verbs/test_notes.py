"""The migration note says what a person can act on, from facts only; and the words of strangers in it are words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from steelyard.download import download
from steelyard.markdown import code, escaped, fenced, shown
from steelyard.standins.torch_zip import TensorSpec
from steelyard.standins.weights import write_torch_zip
from steelyard.updates import check_updates
from tests.conftest import FILE, REPO, World

HOSTILE = [
    "`code` ``` <script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](https://evil.example/x.png)",
    "</code><img src=x onerror=alert(1)>",
    "\x1b[2J\x1b]0;title\x07 \u202egnp.exe \u2066x\u2069",
    "| a | b |\n# Heading\n- [ ] list\n> quote\n---\n```",
    "https://evil.example www.evil.example me@evil.example &lt;b&gt; *x* __y__ ~~z~~",
    "`" * 30,
    "x" * 5000,
    "",
]


@pytest.fixture
def held(world: World) -> World:
    assert download(world.site()).ok
    return world


def note(world: World) -> tuple[dict[str, Any], str]:
    told = check_updates(world.site()).rows[0].as_json()
    return told, Path(told["note"]).read_text()


def layers(path: Path, changes: dict[str, TensorSpec | None], under: str = "state_dict") -> Path:
    """The checkpoint of the tests with some tensors added, replaced or (None) left out."""
    specs: dict[str, TensorSpec | None] = {f"model.diffusion_model.l{n}.weight": ("float32", (512, 1024), n) for n in range(10)}
    specs |= changes
    write_torch_zip(path, {name: spec for name, spec in specs.items() if spec}, under=under)
    return path


def html_of(text: str) -> str:
    """As a viewer with all of GitHub's ways shows it, HTML and bare links included."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_words_stay_words(text: str) -> None:
    for rendered in (html_of(f"before {code(text)} after"), html_of(f"before {escaped(text)} after"), html_of("\n".join(fenced(text)))):
        body = rendered.replace("<p>", "").replace("</p>", "")
        for mark in ("<script", "<img", "<a ", "<h1", "<ul", "<table", "<blockquote", "<hr", "<em>", "<strong>", "<s>", "<del>"):
            assert mark not in body, rendered
    assert all(letter >= " " for letter in shown(text))
    assert "\u202e" not in shown(text)
    assert len(code(text)) < 500


def test_hostile_titles_and_readmes_do_not_leave_their_place(held: World, tmp_path: Path) -> None:
    evil = "\n".join(HOSTILE)
    held.hub.add_revision(REPO, {"README.md": evil.encode()}, title=evil[:200], author="</code>[me](x)")
    held.hub.add_revision(REPO, {FILE: layers(tmp_path / "w.pt", {"`</code>[evil](x)`": ("float16", (7,), 1)})}, title=HOSTILE[0])
    _, text = note(held)
    rendered = html_of(text)
    for mark in ("<script", "<img", "<a ", "onerror=alert(1)>", "<h1>Heading"):
        assert mark not in rendered
    assert "\x1b" not in text
    assert rendered.index("What to do") > rendered.index("READMEs and configs"), "no fence swallowed the rest"


def test_a_drop_in_update_of_one_part(held: World, tmp_path: Path) -> None:
    held.hub.add_revision(REPO, {FILE: layers(tmp_path / "w.pt", {"model.diffusion_model.l3.weight": ("float32", (512, 1024), 99)})})
    told, text = note(held)
    assert told["compatible"] is True
    assert "**Drop-in**" in text
    assert "UNet only (1 of 10 tensors)" in text
    assert "to fetch: 2." in text and "of 21.0 MB; the rest is in the held files" in text
    assert "in the store and as much in the hub cache" in text
    assert f"steelyard restore mvdream --revision {told['held_commit'][:12]}" in text


def test_other_dtypes_say_what_becomes_of_memory(held: World, tmp_path: Path) -> None:
    half: dict[str, TensorSpec | None] = {f"model.diffusion_model.l{n}.weight": ("float16", (512, 1024), n) for n in range(10)}
    held.hub.add_revision(REPO, {FILE: layers(tmp_path / "w.pt", half)})
    told, text = note(held)
    assert told["compatible"] is True
    assert "memory of the weights: 21.0 MB float32 → 10.5 MB float16" in text
    assert "a strict loader casts them" in text
    assert "512x1024 float32 → 512x1024 float16" in text


def test_a_prefix_that_all_names_gained_is_named(held: World, tmp_path: Path) -> None:
    changes: dict[str, TensorSpec | None] = {f"model.diffusion_model.l{n}.weight": None for n in range(10)}
    changes |= {f"module.model.diffusion_model.l{n}.weight": ("float32", (512, 1024), n) for n in range(10)}
    held.hub.add_revision(REPO, {FILE: layers(tmp_path / "w.pt", changes)})
    told, text = note(held)
    assert told["compatible"] is False
    assert "every name has gained the prefix 'module.'" in text
    assert "Adapt the code that loads it first" in text


def test_weights_under_another_key_are_not_drop_in(held: World, tmp_path: Path) -> None:
    held.hub.add_revision(REPO, {FILE: layers(tmp_path / "w.pt", {}, under="model")})
    told, text = note(held)
    assert told["compatible"] is False
    assert "the weights lay under state\\_dict and lie under model now" in text


def test_a_file_that_can_not_be_trusted_is_said_to_be_so(held: World) -> None:
    held.hub.add_revision(REPO, {FILE: b"\x80\x02cposix\nsystem\n(S'true'\ntR." + bytes(3_000_000)})
    told, text = note(held)
    assert (told["compatible"], told["bad_files"]) == (False, {FILE: "hostile"})
    assert "**Do not take it as it is**" in text
    assert "posix.system" in text
    assert "Take it" not in text


def test_a_name_that_is_pasted_into_a_shell_stays_a_name(held: World) -> None:
    name = "x; touch owned #.pt"
    held.configure(files='["*.pt"]')
    held.hub.add_revision(REPO, {name: b"\x80\x02cposix\nsystem\n(S'true'\ntR." + bytes(3_000_000)})
    held.hub.set_scan(REPO, name, "unsafe")
    told, text = note(held)
    assert name in told["changed_files"]
    assert f"/{name}'`" in text


def test_what_changed_in_the_readme_and_the_config_is_shown(held: World, tmp_path: Path) -> None:
    held.hub.add_revision(REPO, {"config.json": b'{"steps": 20}\n', "README.md": b"# MVDream\nline\n"})
    held.configure(files=f'["{FILE}", "config.json"]')
    (held.home / "steelyard.lock").unlink()
    assert download(held.site()).ok
    held.hub.add_revision(REPO, {"config.json": b'{"steps": 50}\n', "README.md": b"# MVDream\nother line\n"}, title="Tune")
    told, text = note(held)
    assert told["changed_files"] == ["config.json"]
    assert '-{"steps": 20}\n+{"steps": 50}' in text
    assert "-line\n+other line" in text, "the README is not held, and says most"
    assert "`Tune` by `founder`" in text


def test_shards_are_compared_as_one_set(world: World, tmp_path: Path) -> None:
    def shard(name: str, tensors: dict[str, TensorSpec]) -> Path:
        write_torch_zip(tmp_path / name, tensors)
        return tmp_path / name

    specs: dict[str, TensorSpec] = {f"l{n}.weight": ("float32", (64, 64), n) for n in range(4)}
    names = list(specs)
    two = ["m-00001-of-00002.bin", "m-00002-of-00002.bin"]
    world.hub.add_revision(
        REPO, {two[0]: shard("a", {n: specs[n] for n in names[:2]}), two[1]: shard("b", {n: specs[n] for n in names[2:]})}
    )
    world.configure(files='["m-*.bin"]')
    assert download(world.site()).ok
    moved = specs | {"l0.weight": ("float32", (64, 64), 77)}
    world.hub.add_revision(
        REPO, {two[0]: shard("c", {n: moved[n] for n in names[:3]}), two[1]: shard("d", {n: moved[n] for n in names[3:]})}
    )
    told, _ = note(world)
    assert told["compatible"] is True
    assert (told["tensors"]["changed"], told["tensors"]["added"], told["tensors"]["removed"]) == (["l0.weight"], [], [])
