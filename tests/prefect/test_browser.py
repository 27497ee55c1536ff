"""The Prefect UI as a person uses it, in a real Chromium: read the form, change a parameter, run, watch, open the report, cancel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import FILE
from tests.prefect.conftest import Api, PrefectWorld, until

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).resolve().parents[2] / "out" / "screenshots"
"""Kept for a person to look at; git ignores the folder."""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]


@pytest.fixture
def page(api: Api) -> Iterator[playwright.Page]:
    """A fresh page; it may ask nobody but the server."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    home = api.url.removesuffix("/api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=home, viewport={"width": 1400, "height": 1300})
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url))
        page.set_default_timeout(20_000)
        yield page
        browser.close()
    assert [url for url in asked if not url.startswith((home, "data:", "blob:", home.replace("http", "ws")))] == []


def start_from_form(page: playwright.Page, api: Api, deployment: str, config: Path) -> str:
    """Fill in the config's path on the form of *deployment*, submit it, and return the run's id."""
    page.goto(f"/deployments/deployment/{api.deployment(deployment)['id']}/run")
    page.get_by_text("Config file").wait_for()
    page.screenshot(path=SHOTS / f"form {deployment.replace('/', ' ')}.png")
    page.get_by_text("path", exact=True).last.click()
    page.get_by_role("textbox").last.fill(str(config))
    for _ in range(4):
        with page.expect_response(re.compile(r"/create_flow_run$")) as answered:
            page.get_by_role("button", name="Submit").click()
        if answered.value.status != 503:  # SQLite had two writers at once; the UI leaves the form as it is
            break
    assert answered.value.status == 201, answered.value.text()
    return str(answered.value.json()["id"])


def test_a_verification_is_asked_for_watched_and_read(page: playwright.Page, api: Api, held: PrefectWorld) -> None:
    held.flip(held.weights, 9_000_000)
    ident = start_from_form(page, api, "verify-models/weekly", held.config)
    page.goto(f"/runs/flow-run/{ident}")
    page.get_by_text(re.compile(r"^verify · all models in")).first.wait_for(timeout=60_000)
    api.until_ended(ident, 60)
    page.get_by_text("Failed").first.wait_for()
    page.screenshot(path=SHOTS / "run verify-models.png")
    page.goto("/artifacts/key/verify-models")
    page.get_by_text("corrupt").first.wait_for()
    page.goto(f"/artifacts/artifact/{api.artifacts(ident)['verify-models']['id']}")
    page.get_by_text(FILE).first.wait_for()
    page.screenshot(path=SHOTS / "artifact verify-models.png")
    assert page.get_by_text("bytes 8,388,608–16,777,216").count() >= 1


def test_the_form_explains_itself(page: playwright.Page, api: Api) -> None:
    page.goto(f"/deployments/deployment/{api.deployment('repair-models/on-demand')['id']}/run")
    for help_text in ("Only say what would be done; nothing is changed.", "Names from the config; none means all.", "or all."):
        page.get_by_text(help_text).first.wait_for()
    page.screenshot(path=SHOTS / "form repair-models.png")
    page.goto("/deployments")
    page.get_by_text("Deployments").first.wait_for()
    page.wait_for_timeout(3000)
    page.screenshot(path=SHOTS / "deployments.png")
    shown = page.inner_text("body")
    assert [name for name in ("keep-models", "backup-models", "check-updates") if name not in shown] == []


def test_a_download_is_cancelled_by_its_button(page: playwright.Page, api: Api, prefect_world: PrefectWorld) -> None:
    world = prefect_world
    world.hub.rate_limit_bytes_per_s = 800_000
    ident = start_from_form(page, api, "download-models/on-demand", world.config)
    until(lambda: world.hub.bytes_sent("cdn") > 2_000_000, 60, "some of the download")
    page.goto(f"/runs/flow-run/{ident}")
    page.get_by_text("Running").first.wait_for()
    page.screenshot(path=SHOTS / "run download-models.png")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("Cancel Flow Run").wait_for()
    page.screenshot(path=SHOTS / "cancel.png")
    page.get_by_role("button", name="Confirm").click()
    run = api.until_ended(ident, 30)
    assert run["state_type"] == "CANCELLED"
    assert not world.weights.exists()
