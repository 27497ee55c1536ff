"""The fleet in the terminal: one row a machine and model, and below them each machine's disk and the age of what it said."""

from __future__ import annotations

from typing import Any

from steelyard.disk import gb
from steelyard.report import Report
from steelyard.status_view import _COLOURS, age
from steelyard.terminal import show_error


def show_fleet(report: Report) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("machine", "model", "commit", "store", "proven", "other copies", "whole copies"):
        table.add_column(heading, overflow="fold")
    for row in report.rows:
        facts = row.facts
        others = ", ".join(f"{name} {seen['verdict']}" for name, seen in facts["copies"].items() if name != "store")
        count, least = facts["verified_copies"], facts["min_copies"]
        verdict = Text(facts["verdict"], style=_COLOURS.get(facts["verdict"], ""))
        proven = Text(age(facts["last_proven"]))
        if facts["stale"]:
            # What a machine said long ago is no statement about today.
            verdict, proven = Text(f"{facts['verdict']}?", style="dim"), Text(f"{proven}, as told then", style="dim")
        enough = Text(f"{count} of {least}", style="dim" if facts["stale"] else "green" if count >= least else "red")
        table.add_row(str(facts["host"]), row.model, (facts["commit"] or "-")[:8], verdict, proven, others or "-", enough)
    console = Console(highlight=False)
    console.print(table)
    for host in report.extra.get("hosts", ()):
        console.print(Text(_line(host), style="yellow" if host["stale"] or host["nearly_full"] else ""))
    for name, became in report.extra.get("published", {}).items():
        console.print(Text(f"{name}: {became}", style="dim"))
    for error in report.errors:
        show_error(error)


def _line(host: dict[str, Any]) -> str:
    store = host["store"]
    disk = f"{gb(store['used_bytes'])} held, {gb(store['free_bytes'])} free of {gb(store['total_bytes'])}"
    said = "looked at now" if host["from"] == "here" else f"said {age(host['published_at'])}, read from {host['from']}"
    remarks = [host["why"], "stale: is its nightly round running?" if host["stale"] and not host["why"] else ""]
    remarks.append("nearly full" if host["nearly_full"] else "")
    return "; ".join([f"{host['host']}: {disk}; {said}", *filter(None, remarks)])
