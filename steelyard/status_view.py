"""The status in the terminal: one row a model, one column a copy, and the disk below it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import humanize

from steelyard.report import Report
from steelyard.status import disk_line
from steelyard.terminal import show_error

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = {"ok": "green", "missing": "red", "corrupt": "red", "unreadable": "red", "stale": "yellow", "unverified": "yellow"}


def age(at: str | None) -> str:
    """ "3 days ago", or "never". *at* is ISO 8601 with zone."""
    return humanize.naturaltime(datetime.now(UTC) - datetime.fromisoformat(at)) if at else "never"


_STATES = {"green": "green", "amber": "yellow", "unknown": "", "red": "red"}
_WORDS = {"green": "yes", "amber": "late", "unknown": "unknown", "red": "no"}
COPY_COLUMNS, OTHER_COLUMNS = 17, 62
"""Width that a copy's column needs, and the rest of the table, to be read without words cut in two."""


def short_age(age_s: float | None) -> str:
    """ "4 h", "12 d", or "never"."""
    if age_s is None:
        return "never"
    return f"{age_s / 60:.0f} min" if age_s < 3600 else f"{age_s / 3600:.0f} h" if age_s < 2 * 86400 else f"{age_s / 86400:.0f} d"


def show_status(report: Report) -> None:
    """A column for each copy where there is room for it, else a line for each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    models: list[dict[str, Any]] = report.extra.get("models", [])
    names = list(dict.fromkeys(copy for model in models for copy in model["copies"]))
    wide = console.width >= OTHER_COLUMNS + COPY_COLUMNS * len(names)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in ("model", *(names if wide else ["copies"]), "restorable", "whole", "update"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "whole")
    for model in models:
        about = " · ".join(part for part in ((model["commit"] or "")[:8], model.get("licence") or "") if part)
        cells = [Text(model["model"]) + Text(f"\n{about}" if about else "", style="dim")]
        seen = {name: model["copies"].get(name) for name in names}
        cells += [_copy(one) for one in seen.values()] if wide else [_copies({name: one for name, one in seen.items() if one})]
        cells.append(_restorable(model["restorable"]))
        count, least = model["verified_copies"], model["min_copies"]
        cells.append(Text(f"{count} of {least}", style="green" if count >= least else "red"))
        update = model["update"]
        cells.append(Text(f"{update['verdict']}\n{age(update['at'])}" if update else "never checked", style="" if update else "dim"))
        table.add_row(*cells)
    if models:
        console.print(table)
    console.print(Text(disk_line(report)), style=_disk_style(report.extra["store"]))
    console.print(Text("by size, times and the last proof; nothing was read. steelyard verify --copy all reads it all.", style="dim"))
    for what, key in (("page", "html"), ("metrics", "metrics")):
        if key in report.extra:
            console.print(f"{what}: {report.extra[key]}", soft_wrap=True, markup=False)
    for error in report.errors:
        show_error(error)


def _copy(seen: dict[str, Any] | None) -> Text:
    from rich.text import Text

    if seen is None:
        return Text("-")
    return Text(_verdict(seen), style=_COLOURS.get(_verdict(seen), "")) + Text("".join(f"\n{one}" for one in _remarks(seen)), style="dim")


def _copies(seen: dict[str, dict[str, Any]]) -> Text:
    from rich.text import Text

    told = Text()
    for name, one in seen.items():
        told += Text("\n" if told else "") + Text(f"{name} ") + Text(_verdict(one), style=_COLOURS.get(_verdict(one), ""))
        told += Text("".join(f", {remark}" for remark in _remarks(one)), style="dim")
    return told


def _verdict(seen: dict[str, Any]) -> str:
    return "away" if seen.get("away") else str(seen["verdict"])


def _remarks(seen: dict[str, Any]) -> list[str]:
    proven = seen.get("last_proven")
    whole = "proven" if seen["verdict"] == "ok" or seen.get("away") else "last whole"
    return [*([f"{whole} {age(proven)}"] if proven else []), *([seen["why"]] if seen.get("why") else [])]


def _restorable(told: dict[str, Any]) -> Text:
    from rich.text import Text

    state = told["state"]
    facts = [f"proof {short_age(told['proof_age_s'])}, drill {short_age(told['drill_age_s'])}"] if told["copy"] else []
    facts += [told["why"]] if told["why"] else []
    return Text(_WORDS[state], style=_STATES[state]) + Text("".join(f"\n{one}" for one in facts), style="dim")


def _disk_style(store: dict[str, Any]) -> str:
    free = store["free_bytes"]
    return "red" if free < store["error_free_bytes"] else "yellow" if free < store["warn_free_bytes"] else ""
