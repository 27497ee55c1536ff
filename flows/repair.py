"""repair-models: replace bad pieces by proven ones."""

from __future__ import annotations

from prefect import State, flow

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import CopyName, DryRun, Models, Options, which
from steelyard.repair import repair
from steelyard.report import Report
from tasks.runner import run_as_task


class RepairModels(Options):
    """Which copies to mend. Asked for in the UI it only says what it would do, until Dry run is taken out."""

    models: Models = ()
    copy_name: CopyName = "store"
    dry_run: DryRun = True

    @property
    def title(self) -> str:
        where = "all copies" if self.copy_name == "all" else self.copy_name
        return f"{which(self.models)} in {where}{' (dry run)' if self.dry_run else ''}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.models, *((self.copy_name,) if self.copy_name != "all" else ()))


@flow(**named("repair-models", "repair"))
def repair_models(options: RepairModels = RepairModels()) -> State[Report] | Report:
    """Replace bad pieces from any copy whose piece verifies; the bad bytes go to quarantine."""
    return perform(
        "repair", options, lambda site: repair(site, options.models, copy=options.copy_name, dry_run=options.dry_run, run=run_as_task)
    )


if __name__ == "__main__":
    by_hand("repair")
