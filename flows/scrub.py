"""scrub-models: verify everything a bit at a time, oldest proof first."""

from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.report import Report
from steelyard.scrub import scrub
from tasks.runner import run_as_task


class ScrubModels(Options):
    """Which models to read back, and how much of them this time."""

    models: Models = ()
    budget: Annotated[
        str | None,
        Field(
            pattern=r"^\s*\d+(\.\d+)?\s*[A-Za-z]*\s*$",
            max_length=40,
            description="How much to read (50GB) or how long (30min). Empty: everything.",
        ),
    ] = None

    @property
    def title(self) -> str:
        return f"{which(self.models)}{f' · {self.budget}' if self.budget else ''}"

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("scrub-models", "scrub"))
def scrub_models(options: ScrubModels = ScrubModels()) -> State[Report] | Report:
    """Read back every copy that is there, oldest proof first, until the budget is spent; gives way to a busy disk."""
    return perform("scrub", options, lambda site: scrub(site, options.models, budget=options.budget, run=run_as_task))


if __name__ == "__main__":
    by_hand("scrub")
