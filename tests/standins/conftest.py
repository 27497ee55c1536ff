from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from asking import FILE, README, REPO, WEIGHTS, ask

from steelyard.standins.hub import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_revision(REPO, {FILE: WEIGHTS, "README.md": README, "configs/a.json": b"{}"}, title="First weights")
        yield hub


@pytest.fixture
def resolve(hub: LoopbackHub) -> Callable[..., str]:
    return lambda path=FILE, revision="main", repo=REPO: f"{hub.endpoint}/{repo}/resolve/{revision}/{path}"


@pytest.fixture
def link(resolve: Callable[..., str]) -> Callable[[], str]:
    """A freshly signed link to the weights on the CDN."""
    return lambda: ask(resolve(), "HEAD").headers["Location"]
