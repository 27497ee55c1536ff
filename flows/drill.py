"""drill-restore: restore to scratch, verify, load, time it, clean up."""

from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, ReplicaName, which
from steelyard.drill import drill
from steelyard.loading import Device
from steelyard.report import Report
from tasks.runner import run_as_task


class DrillRestore(Options):
    """Which models to bring back to scratch, and from which replica."""

    models: Models = ()
    source: ReplicaName = None
    device: Annotated[Device, Field(description="Where the restored weights are loaded.")] = "cpu"

    @property
    def title(self) -> str:
        return f"{which(self.models)} ← {self.source or 'each replica'}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.models, *((self.source,) if self.source else ()))


@flow(**named("drill-restore", "drill"))
def drill_restore(options: DrillRestore = DrillRestore()) -> State[Report] | Report:
    """Restore to scratch, verify, load, time it, clean up: the answer is how long you would be down."""
    return perform(
        "drill", options, lambda site: drill(site, options.models, source=options.source, device=options.device, run=run_as_task)
    )


if __name__ == "__main__":
    by_hand("drill")
