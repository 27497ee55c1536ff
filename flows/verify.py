"""verify-models: judge copies by the recorded digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import CopyName, Models, Options, which
from steelyard.copies.base import Depth, Look
from steelyard.report import Report
from steelyard.verify import verify
from tasks.runner import run_as_task


class VerifyModels(Options):
    """Which models to judge, where, and how deeply."""

    models: Models = ()
    copy_name: CopyName = "store"
    depth: Annotated[
        Depth,
        Field(description="quick: size and times only. default: the cheapest real proof. deep: read every byte back, from S3 too."),
    ] = "default"
    cold: Annotated[bool | None, Field(description="Read from the medium and not from memory. Empty: for replicas only.")] = None

    @classmethod
    def of(cls, config: Path | None, params: Mapping[str, Any]) -> Self:
        look = params.get("look") or Look()
        rest = {key: value for key, value in params.items() if key != "look"}
        return super().of(config, {**rest, "depth": look.depth, "cold": look.cold})

    @property
    def title(self) -> str:
        return f"{which(self.models)} in {'all copies' if self.copy_name == 'all' else self.copy_name}"

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.models, *((self.copy_name,) if self.copy_name != "all" else ()))


@flow(**named("verify-models", "verify"))
def verify_models(options: VerifyModels = VerifyModels()) -> State[Report] | Report:
    """Judge copies by the recorded digests and say which bytes are bad. Changes nothing."""
    look = Look(options.depth, options.cold, wake=options.depth == "deep" and options.copy_name != "all")
    return perform("verify", options, lambda site: verify(site, options.models, copy=options.copy_name, look=look, run=run_as_task))


if __name__ == "__main__":
    by_hand("verify")
