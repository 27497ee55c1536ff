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


_STATES = {"green": "green", "amber": "yellow", "unknown": "", "red": "red"}
_WORDS = {"green": "yes", "amber": "yes, but", "unknown": "unknown", "red": "no"}


def short_age(age_s: float | None) -> str:
    """ "4 h", "12 d", or "never"."""
    if age_s is None:
        return "never"
    return f"{age_s / 60:.0f} min" if age_s < 3600 else f"{age_s / 3600:.0f} h" if age_s < 2 * 86400 else f"{age_s / 86400:.0f} d"


def show_status(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    models: list[dict[str, Any]] = report.extra.get("models", [])
    names = list(dict.fromkeys(copy for model in models for copy in model["copies"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for heading in (*names, "restorable", "copies", "update"):
        table.add_column(heading, overflow="fold")
    for model in models:
        about = " · ".join(part for part in ((model["commit"] or "")[:8], model.get("licence") or "") if part)
        cells = [Text(model["model"]) + Text(f"\n{about}" if about else "", style="dim")]
        for name in names:
            seen = model["copies"].get(name)
            verdict = seen["verdict"] if seen else "-"
            when = f"\nproven {age(seen.get('last_proven'))}" if seen and seen.get("last_proven") else ""
            why = f"\n{seen['why']}" if seen and seen.get("why") else ""
            cells.append(Text(verdict, style=_COLOURS.get(verdict, "")) + Text(f"{when}{why}", style="dim"))
        cells.append(_restorable(model["restorable"]))
        count, least = model["verified_copies"], model["min_copies"]
        cells.append(Text(f"{count} of {least}", style="green" if count >= least else "red"))
        update = model["update"]
        cells.append(Text(f"{update['verdict']}\n{age(update['at'])}" if update else "never checked", style="" if update else "dim"))
        table.add_row(*cells)
    console = Console(highlight=False)
    if models:
        console.print(table)
    console.print(disk_line(report), style=_disk_style(report.extra["store"]))
    console.print(Text("by size, times and the last proof; nothing was read. steelyard verify --copy all reads it all.", style="dim"))
    for error in report.errors:
        show_error(error)


def _restorable(told: dict[str, Any]) -> Any:
    from rich.text import Text

    state = told["state"]
    facts = [f"proof {short_age(told['proof_age_s'])} · drill {short_age(told['drill_age_s'])}"] if told["copy"] else []
    facts += [told["why"]] if told["why"] else []
    return Text(_WORDS[state], style=_STATES[state]) + Text("".join(f"\n{one}" for one in facts), style="dim")


def _disk_style(store: dict[str, Any]) -> str:
    free = store["free_bytes"]
    return "red" if free < store["error_free_bytes"] else "yellow" if free < store["warn_free_bytes"] else ""
