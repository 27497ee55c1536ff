"""download-models: bring what the lock names into the store, proven."""

from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.download import download
from steelyard.report import Report
from tasks.runner import run_as_task


class DownloadModels(Options):
    """Which models to bring into the store."""

    models: Models = ()
    locked: Annotated[
        bool,
        Field(
            title="Only what is locked",
            description="Just the bytes that steelyard.lock names, or fail: the Hub is not asked what a revision is, and the lock is never written.",
        ),
    ] = False

    @property
    def title(self) -> str:
        return which(self.models)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("download-models", "download"))
def download_models(options: DownloadModels = DownloadModels()) -> State[Report] | Report:
    """Resolve, lock, check space, fetch, verify, and publish into the store; goes on where the last run stopped."""
    return perform("download", options, lambda site: download(site, options.models, locked=options.locked, run=run_as_task))


if __name__ == "__main__":
    by_hand("download")
