"""download-models: bring what the lock names into the store, proven."""

from prefect import State, flow

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.download import download
from steelyard.report import Report
from tasks.runner import run_as_task


class DownloadModels(Options):
    """Which models to bring into the store."""

    models: Models = ()

    @property
    def title(self) -> str:
        return which(self.models)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("download-models", "download"))
def download_models(options: DownloadModels = DownloadModels()) -> State[Report] | Report:
    """Resolve, lock, check space, fetch, verify, and publish into the store; goes on where the last run stopped."""
    return perform("download", options, lambda site: download(site, options.models, run=run_as_task))


if __name__ == "__main__":
    by_hand("download")
