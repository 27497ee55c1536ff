"""The page that `up` serves: on the loopback, by name, made anew, and honest when it can't be made."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import status_page
from deployments.status_page import LOOPBACK, StatusPage
from tests.conftest import clean_environment
from tests.status.scenes import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "w", 1).build()


@pytest.fixture
def served(scene: Scene, tmp_path: Path) -> Iterator[tuple[str, StatusPage]]:
    page = StatusPage(scene.config, {**clean_environment(), "XDG_STATE_HOME": str(tmp_path / "state")}, tmp_path / "page")
    yield page.start(0), page
    page.stop()


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_the_page_and_the_metrics_are_served_from_one_look(served: tuple[str, StatusPage]) -> None:
    url, _ = served
    code, text, headers = get(url)
    assert (code, headers["Content-Type"], headers["Cache-Control"]) == (200, "text/html; charset=utf-8", "no-store")
    assert "It could be restored now." in text
    code, metrics, headers = get(f"{url}metrics")
    assert (code, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert 'steelyard_model_restorable{model="mvdream",state="green"} 1.0' in metrics
    assert get(f"{url}etc/passwd")[0] == get(f"{url}..%2f..%2fetc/passwd")[0] == 404
    assert get(url, "POST")[0] == get(url, "DELETE")[0] == 501
    assert get(url, Host="evil.example:80")[0] == 403
    assert get(url, Host="localhost")[0] == 200
    assert url.startswith(f"http://{LOOPBACK}:")


def test_what_can_not_be_made_is_said_and_no_old_page_is_shown(
    served: tuple[str, StatusPage], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = served
    assert get(url)[0] == 200
    monkeypatch.setattr(status_page, "FRESH_S", 0.0)
    whole = scene.config.read_text()
    scene.config.write_text("[store")
    code, text, _ = get(url)
    assert code == 503 and "not valid TOML" in text and "restored now" not in text
    scene.config.write_text(whole)
    assert get(url)[0] == 200


def test_a_taken_port_is_passed_over(scene: Scene, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        taken = other.getsockname()[1]
        page = StatusPage(scene.config, clean_environment(), tmp_path / "page")
        assert page.start(taken, 0) != f"http://{LOOPBACK}:{taken}/"
        page.stop()
