"""The verbs by name: what the command line and the flows both run. Each takes a Site and keyword parameters and returns a Report."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.errors import SteelyardError
from steelyard.report import Report

VERBS = {
    "download": "steelyard.download:download",
    "verify": "steelyard.verify:verify",
    "load": "steelyard.loading:load",
    "backup": "steelyard.backup:backup",
    "restore": "steelyard.restore:restore",
    "repair": "steelyard.repair:repair",
    "scrub": "steelyard.scrub:scrub",
    "drill": "steelyard.drill:drill",
    "update": "steelyard.update:update",
    "rollback": "steelyard.update:rollback",
    "check-updates": "steelyard.updates:check_updates",
    "disk-watch": "steelyard.disk_watch:disk_watch",
}
"""Verbs that are also flows. Named, not imported: --help must not pay for what it does not run."""


@dataclass(frozen=True)
class Call:
    """One verb with its parameters, as asked for by a person, a schedule or the UI."""

    verb: str
    config: Path | None = None
    params: dict[str, Any] = field(default_factory=dict)


Engine = Callable[[Call], Report]


def verb(name: str) -> Callable[..., Report]:
    module, _, function = VERBS[name].partition(":")
    found: Callable[..., Report] = getattr(importlib.import_module(module), function)
    return found


def run_locally(call: Call) -> Report:
    """Run the verb in this process, with no orchestrator. :raises SteelyardError: for what concerns the whole call (config, usage)."""
    from steelyard.runs import remembered
    from steelyard.site import Site

    site = Site.open(call.config)
    report = remembered(site, call.verb, lambda: verb(call.verb)(site, **call.params))
    if report.quiet:
        from steelyard.receipt import world_of

        # A backup that went well is not called anything else for want of a receipt.
        with contextlib.suppress(OSError, SteelyardError):
            report.receipt = world_of(site, report)
    return report
