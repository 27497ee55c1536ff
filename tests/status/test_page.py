"""The page, looked at in a real Chromium: true to the JSON, legible on every medium, and silent on the network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard.page.picture import Picture, gather
from steelyard.page.write import render, write_page
from steelyard.publishing import publish_status
from steelyard.status import status
from tests.conftest import clean_environment
from tests.status.scenes import Scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).resolve().parents[2] / "out" / "screenshots"
"""Kept for a person to look at; git ignores the folder."""
browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in set(__import__("os").environ) - set(clean_environment()):
        if not name.startswith("PYTEST"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


FIVE: dict[str, Any] = {
    "models": 5,
    "verdicts": {("zero123-xl", "usb"): "corrupt"},
    "never_drilled": frozenset({"dpt-hybrid"}),
    "late": frozenset({"clip-vit-large"}),
    "gone": frozenset({"stable-diffusion-2-1"}),
}
MANY: dict[str, Any] = {"models": 200, "verdicts": {("mvdream", "usb"): "corrupt", ("mvdream-9", "s3"): "corrupt"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Picture, Path]]:
    """The picture and the page of a scene, made once."""
    known: dict[str, tuple[Picture, Path]] = {}

    def make(name: str, **wanted: Any) -> tuple[Picture, Path]:
        if name not in known:
            home = tmp_path_factory.mktemp(name)
            picture = gather(Scene(home / "world", **wanted).build().site())
            known[name] = picture, write_page(home / "status.html", picture)
        return known[name]

    return make


def test_the_command_writes_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", 1).build()
    page = tmp_path / "status.html"
    page.write_text("an older one")
    command = [__import__("sys").executable, "-m", "steelyard", "status", "--config", str(scene.config), "--html", str(page), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["html"] == str(page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["status.html", "w"]
    text = page.read_text()
    assert text.lower().startswith("<!doctype html>") and "an older one" not in text
    for word in ("<script", "http://", " src=", "url(", "@import", "@font-face"):
        assert word not in text.replace("https://s3.example.org", ""), word


def test_a_device_or_a_pipe_is_never_replaced_by_the_page(tmp_path: Path) -> None:
    site = Scene(tmp_path / "w", 1).build().site()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        report = status(site)
        publish_status(site, report, html=place, metrics=place)
        assert [error.code for error in report.errors] == ["refused", "refused"]
        assert "left as it is" in report.errors[0].message
    assert pipe.is_fifo()


def test_names_of_strangers_are_only_text(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", 2, hostile=True, gone=frozenset({"mvdream"})).build()
    picture = gather(scene.site())
    evil = "\"><img src=x onerror=alert(1)>'{{7*7}}"
    models = [dict(model, repo_id=evil, licence=evil) for model in picture.models]
    models[0]["copies"]["usb"] = {"verdict": "corrupt", "last_proven": None, "why": evil, "file": "<script>alert(1)</script>"}
    text = render(Picture(**{**vars(picture), "models": models, "host": evil}))
    assert "<script" not in text and "<img" not in text and "{{7*7}}" in text


def test_a_store_that_is_not_there_yet_has_a_page(tmp_path: Path) -> None:
    config = tmp_path / "steelyard.toml"
    config.write_text(f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[models.a]\nrepo_id = "a/b"\n')
    from steelyard.site import Site

    text = render(gather(Site.open(config)))
    assert "None of 1 model could be restored now" in text
    assert not (tmp_path / "m").exists()


def test_a_lock_that_can_not_be_read_is_told_and_shows_no_model(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", 1).build()
    scene.config.with_suffix(".lock").write_text("{")
    text = render(gather(scene.site()))
    assert "Nothing is held yet" not in text
    assert "bad-record" in text


# --- in the browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(chromium: Any, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", media: str = "screen") -> Any:
    """The page, which may ask for nothing but itself; a second request of any kind fails the test that looks."""
    shown = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    shown.asked = []
    shown.on("request", lambda request: shown.asked.append(request.url))
    shown.emulate_media(media=media, color_scheme=scheme)
    shown.goto(page.as_uri())
    assert [url for url in shown.asked if not url.startswith("data:")] == [page.as_uri()]
    return shown


CELLS = """() => [...document.querySelectorAll('tr[data-model]')].map(row => ({
  model: row.dataset.model, state: row.querySelector('[data-state]').dataset.state,
  said: row.querySelector('[data-state] .badge').innerText.trim(), whole: row.querySelector('[data-whole]').innerText.trim(),
  copies: Object.fromEntries([...row.querySelectorAll('[data-copy]')].map(cell => [cell.dataset.copy, cell.querySelector('.badge')?.innerText.trim()]))}))"""


@pytest.mark.parametrize(
    ("name", "wanted"), [("one", {"models": 1}), ("five", FIVE), ("away", {"models": 2, "away": True}), ("many", MANY)]
)
class TestInTheBrowser:
    pytestmark = browser

    def test_every_cell_says_what_the_json_says(self, chromium: Any, made: Any, name: str, wanted: dict[str, Any]) -> None:
        picture, page = made(name, **wanted)
        shown = opened(chromium, page)
        cells = {row["model"]: row for row in shown.evaluate(CELLS)}
        assert set(cells) == {model["model"] for model in picture.models} and len(cells) == wanted["models"]
        words = {"green": "✓ yes", "amber": "! late", "unknown": "? unknown", "red": "✗ no"}
        glyphs = {"ok": "✓", "unverified": "?", "stale": "!"}
        for model in picture.models:
            row = cells[model["model"]]
            assert (row["state"], row["said"]) == (model["restorable"]["state"], words[model["restorable"]["state"]])
            assert row["whole"].endswith(f"{model['verified_copies']} of {model['min_copies']}")
            for copy, seen in model["copies"].items():
                said = "? away" if seen.get("away") else f"{glyphs.get(seen['verdict'], '✗')} {seen['verdict']}"
                assert row["copies"][copy] == said
        shown.close()

    @pytest.mark.parametrize("width", [390, 320, 820, 1280])
    def test_nothing_lies_beyond_the_edge(self, chromium: Any, made: Any, name: str, wanted: dict[str, Any], width: int) -> None:
        if width not in {390, 1280} and name != "five":
            return
        shown = opened(chromium, made(name, **wanted)[1], width=width)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
        assert shown.evaluate(wide) == 0
        shown.close()

    @pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
    def test_every_word_has_enough_contrast(
        self, chromium: Any, made: Any, name: str, wanted: dict[str, Any], scheme: str, media: str
    ) -> None:
        if name in {"many", "one"}:
            return  # the same styles as five
        shown = opened(chromium, made(name, **wanted)[1], scheme=scheme, media=media)
        assert shown.evaluate(CONTRAST) == []
        shown.close()

    def test_it_is_looked_at(self, chromium: Any, made: Any, name: str, wanted: dict[str, Any]) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page = made(name, **wanted)[1]
        for kind, width, scheme, media in (
            ("light", 1280, "light", "screen"),
            ("dark", 1280, "dark", "screen"),
            ("phone", 390, "light", "screen"),
            ("print", 690, "light", "print"),
        ):
            shown = opened(chromium, page, width=width, scheme=scheme, media=media)
            shown.screenshot(path=SHOTS / f"status {name} {kind}.png", full_page=name != "many")
            shown.close()


CONTRAST = """() => {
  const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * part(c[0]) + .7152 * part(c[1]) + .0722 * part(c[2]);
  const below = e => {
    for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > .99) return c }
    return [255, 255, 255, 1];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.textContent.trim() || e.tagName === 'title' || e.closest('.unseen') || !e.getClientRects().length) continue;
    const ink = rgb(e.namespaceURI.endsWith('svg') ? style.fill : style.color), a = light(ink), b = light(below(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push([node.textContent.trim(), ratio.toFixed(2)]);
  }
  return poor;
}"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_tables_and_plots_are_named_for_those_who_can_not_see_them(chromium: Any, made: Any) -> None:
    shown = opened(chromium, made("five", **FIVE)[1])
    assert (
        shown.evaluate(
            "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label') || !s.querySelector('title')).length"
        )
        == 0
    )
    assert (
        shown.evaluate("[...document.querySelectorAll('table')].filter(t => !t.caption || !t.querySelector('thead th[scope=col]')).length")
        == 0
    )
    assert shown.evaluate("[...document.querySelectorAll('tbody tr')].filter(r => !r.querySelector('th[scope=row]')).length") == 0
    assert shown.evaluate(
        "[...document.querySelectorAll('[id]')].length == new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    assert shown.evaluate("document.documentElement.lang") == "en"
    shown.close()


# --- in the terminal


@pytest.mark.parametrize(
    ("name", "wanted"), [("one", {"models": 1}), ("five", FIVE), ("away", {"models": 2, "away": True}), ("many", MANY)]
)
@pytest.mark.parametrize("columns", [80, 140])
def test_the_terminal_says_the_same(
    made: Any,
    name: str,
    wanted: dict[str, Any],
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from steelyard.status_view import show_status

    if name == "many":
        wanted = {**wanted, "models": 40}
    report = status(Scene(tmp_path / "w", **wanted).build().site())
    monkeypatch.setenv("COLUMNS", str(columns))
    show_status(report)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(columns, 160)
    words = {"green": "yes", "amber": "late", "unknown": "unknown", "red": "no"}
    text = " ".join(" ".join(lines).split())
    for model in report.extra["models"]:
        assert words[model["restorable"]["state"]] in text
    if name == "five":
        for word in ("missing", "corrupt", "never drilled", "too long ago"):
            assert word in text or columns == 80, word
    if name == "away":
        assert "nothing is" in text


def test_a_page_of_the_fleet_is_refused_and_the_path_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from steelyard.cli import main

    scene = Scene(tmp_path / "w", 1).build()
    for options, code in ((["--fleet"], 2), ([], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["status", "--config", str(scene.config), "--html", str(tmp_path / "p.html"), *options])
        assert ended.value.code == code
    assert f"page: {tmp_path}/p.html" in capsys.readouterr().out.replace("\n", "")
