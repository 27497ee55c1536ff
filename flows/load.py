"""test-model-loading: do the weights really load."""

from pathlib import Path
from typing import Annotated

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.loading import Device, load
from steelyard.report import Report
from tasks.runner import run_as_task


class TestModelLoading(Options):
    """Which models to load, and where."""

    models: Models = ()
    device: Annotated[Device, Field(description="Where to load them; auto takes a GPU where one has room.")] = "auto"
    timeout_s: Annotated[float, Field(gt=0, le=86_400, description="Longest time for one file [seconds].")] = 600.0

    sign: Annotated[
        Path | None, Field(title="Key", description="An Ed25519 private key (PEM) to sign the certificates with. Empty: the config's.")
    ] = None

    @property
    def title(self) -> str:
        return f"{which(self.models)} on {self.device}"

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("test-model-loading", "load"))
def test_model_loading(options: TestModelLoading = TestModelLoading()) -> State[Report] | Report:
    """Load every weights file of the store in a child process with bounded time and memory."""
    return perform(
        "load",
        options,
        lambda site: load(site, options.models, device=options.device, timeout_s=options.timeout_s, sign=options.sign, run=run_as_task),
    )


if __name__ == "__main__":
    by_hand("load")
