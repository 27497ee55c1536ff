"""restore-model: bring a model back from its copies."""

from pathlib import Path
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Model, Options, ReplicaName
from steelyard.report import Report
from steelyard.restore import restore
from tasks.runner import run_as_task


class RestoreModel(Options):
    """Which model to bring back, from where, and where to."""

    model: Model
    source: ReplicaName = None
    revision: Annotated[
        str | None, Field(min_length=1, max_length=200, description="A snapshot's commit, 6 digits or more. Empty: the locked one.")
    ] = None
    into: Annotated[Path | None, Field(description="An absolute folder on the machine that does the work. Empty: the store.")] = None
    force: Annotated[bool, Field(description="Put what stands in the way into quarantine.")] = False

    @property
    def title(self) -> str:
        return f"{self.model} ← {self.source or 'any copy'}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.model, *((self.source,) if self.source else ()))


@flow(**named("restore-model", "restore"))
def restore_model(options: RestoreModel) -> State[Report] | Report:
    """Bring a model back, piece by piece from whichever copy is good, and prove the Hub's SHA-256 before it gets its name."""
    return perform(
        "restore",
        options,
        lambda site: restore(
            site,
            options.model,
            source=options.source,
            revision=options.revision,
            into=options.into,
            force=options.force,
            run=run_as_task,
        ),
    )


if __name__ == "__main__":
    by_hand("restore")
