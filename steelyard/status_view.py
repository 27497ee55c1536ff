"""The status in the terminal: one row a model, one column a copy, and the disk below it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import humanize

from steelyard.report import Report
from steelyard.status import disk_line
from steelyard.terminal import show_error

_COLOURS = {"ok": "green", "missing": "red", "corrupt": "red", "unreadable": "red", "stale": "yellow", "unverified": "yellow"}


def age(at: str | None) -> str:
    """ "3 days ago", or "never". *at* is ISO 8601 with zone."""
    return humanize.naturaltime(datetime.now(UTC) - datetime.fromisoformat(at)) if at else "never"


def show_status(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    models: list[dict[str, Any]] = report.extra.get("models", [])
    names = list(dict.fromkeys(copy for model in models for copy in model["copies"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("model", "commit", *names, "whole copies", "update"):
        table.add_column(heading, overflow="fold")
    for model in models:
        cells = [Text(model["model"]), Text((model["commit"] or "-")[:8])]
        for name in names:
            seen = model["copies"].get(name)
            verdict = seen["verdict"] if seen else "-"
            when = f"\nproven {age(seen.get('last_proven'))}" if seen and seen.get("last_proven") else ""
            why = f"\n{seen['why']}" if seen and seen.get("why") else ""
            cells.append(Text(verdict, style=_COLOURS.get(verdict, "")) + Text(f"{when}{why}", style="dim"))
        count, least = model["verified_copies"], model["min_copies"]
        cells.append(Text(f"{count} of {least}", style="green" if count >= least else "red"))
        update = model["update"]
        cells.append(Text(f"{update['verdict']}\n{age(update['at'])}" if update else "never checked", style="" if update else "dim"))
        table.add_row(*cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(disk_line(report))
    console.print(Text("by size, times and the last proof; nothing was read. steelyard verify --copy all reads it all.", style="dim"))
    for error in report.errors:
        show_error(error)
