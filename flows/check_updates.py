"""check-updates: what changed upstream, and what it means."""

from prefect import State, flow

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard import updates
from steelyard.report import Report
from tasks.runner import run_as_task


class CheckUpdates(Options):
    """Which models to ask the Hub about."""

    models: Models = ()

    @property
    def title(self) -> str:
        return which(self.models)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("check-updates", "check updates"))
def check_updates(options: CheckUpdates = CheckUpdates()) -> State[Report] | Report:
    """Ask the Hub what changed and what it means. Changes nothing that is held."""
    return perform("check-updates", options, lambda site: updates.check_updates(site, options.models, run=run_as_task))


if __name__ == "__main__":
    by_hand("check-updates")
