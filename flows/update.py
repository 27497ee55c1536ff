"""update-model and rollback-model: take the new version, keep the old; go back to it."""

from __future__ import annotations

import sys
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Model, Options
from steelyard.report import Report
from steelyard.update import rollback, update
from tasks.runner import run_as_task


class UpdateModel(Options):
    """Which model to update, and to what."""

    model: Model
    to: Annotated[
        str | None, Field(title="Revision", description="A branch, tag or commit. Empty: the config's revision.", max_length=200)
    ] = None

    @property
    def title(self) -> str:
        return f"{self.model} → {self.to or 'newest'}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.model,)


class RollbackModel(Options):
    """Which model to take back to its earlier revision."""

    model: Model

    @property
    def title(self) -> str:
        return self.model

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.model,)


@flow(**named("update-model", "update"))
def update_model(options: UpdateModel) -> State[Report] | Report:
    """Take the new version: fetched beside the old one, proven, loaded, then switched to; the old one is kept."""
    return perform("update", options, lambda site: update(site, options.model, to=options.to, run=run_as_task))


@flow(**named("rollback-model", "rollback"))
def rollback_model(options: RollbackModel) -> State[Report] | Report:
    """Go back to the revision that was current before; no network, seconds."""
    return perform("rollback", options, lambda site: rollback(site, options.model, run=run_as_task))


if __name__ == "__main__":
    # `python -m flows.update MODEL`, or `python -m flows.update rollback MODEL`.
    verb = sys.argv.pop(1) if sys.argv[1:2] == ["rollback"] else "update"
    by_hand(verb)
