"""update-model, apply-update and rollback-model: take the new version, or just the one that was approved; keep the old; go back to it."""

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
    plan: Annotated[
        str | None,
        Field(
            title="Plan",
            description="Take just what this plan says: the digest that check-updates told. Empty: what is newest.",
            max_length=80,
        ),
    ] = None

    @property
    def title(self) -> str:
        return f"{self.model} → {self.to or _short(self.plan) or 'newest'}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.model,)


class ApplyUpdate(Options):
    """Which plan to take, word for word: what is not just that is refused."""

    model: Model
    plan: Annotated[
        str,
        Field(
            title="Approved plan",
            description="The digest of the plan, from the artifact or the note of check-updates. If upstream has moved since, it is refused.",
            pattern=r"^\s*(sha256:)?[0-9a-fA-F]{64}\s*$",
        ),
    ]

    @property
    def title(self) -> str:
        return f"{self.model} → {_short(self.plan)}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.model,)


def _short(plan: str | None) -> str:
    return f"plan {plan.strip().removeprefix('sha256:')[:12]}" if plan else ""


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
    return perform("update", options, lambda site: update(site, options.model, to=options.to, plan=options.plan or None, run=run_as_task))


@flow(**named("apply-update", "apply"))
def apply_update(options: ApplyUpdate) -> State[Report] | Report:
    """Take the update whose plan was approved, and nothing else: fetched beside the old one, proven, loaded, then switched to."""
    return perform("update", options, lambda site: update(site, options.model, plan=options.plan, run=run_as_task))


@flow(**named("rollback-model", "rollback"))
def rollback_model(options: RollbackModel) -> State[Report] | Report:
    """Go back to the revision that was current before; no network, seconds."""
    return perform("rollback", options, lambda site: rollback(site, options.model, run=run_as_task))


if __name__ == "__main__":
    # `python -m flows.update MODEL`, or `python -m flows.update rollback MODEL`.
    verb = sys.argv.pop(1) if sys.argv[1:2] == ["rollback"] else "update"
    by_hand(verb)
