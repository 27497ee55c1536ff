"""What all our flows have in common: their names for a run, and that nothing of them is cached, retried as a whole, or stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from prefect.context import FlowRunContext

from flows.options import Options


class Common(TypedDict):
    name: str
    flow_run_name: Callable[[], str]
    persist_result: bool
    log_prints: bool
    retries: int


def named(name: str, verb: str) -> Common:
    """The settings of the flow *name*; its runs are called "verb · what it is about"."""

    def run_name() -> str:
        context = FlowRunContext.get()
        options: Any = (context.parameters or {}).get("options") if context else None
        about = options.title if isinstance(options, Options) else ""
        return f"{verb} · {about}" if about else verb

    # Retries belong to tasks: with a deployment's limit, a flow's own retries crash the run (Prefect issue 22885).
    return Common(name=name, flow_run_name=run_name, persist_result=False, log_prints=False, retries=0)
