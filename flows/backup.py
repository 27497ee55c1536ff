"""backup-models: bring replicas up to date."""

from prefect import State, flow

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import DryRun, Models, Options, ReplicaName, which
from steelyard.backup import backup
from steelyard.report import Report
from tasks.runner import run_as_task


class BackupModels(Options):
    """Which models to carry, and to which replica."""

    models: Models = ()
    to: ReplicaName = None
    dry_run: DryRun = False

    @property
    def title(self) -> str:
        return f"{which(self.models)} → {self.to or 'all replicas'}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.models, *((self.to,) if self.to else ()))


@flow(**named("backup-models", "backup"))
def backup_models(options: BackupModels = BackupModels()) -> State[Report] | Report:
    """Bring replicas up to date: only proven bytes are carried, nothing is deleted or overwritten."""
    return perform("backup", options, lambda site: backup(site, options.models, to=options.to, dry_run=options.dry_run, run=run_as_task))


if __name__ == "__main__":
    by_hand("backup")
