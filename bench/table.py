"""One table of everything that was measured: in the terminal, as Markdown for the docs, and as a plot (SVG, made by hand: it needs no library)."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from rows import Row

HEADINGS = ("what", "ours", "peer", "", "of the peer's", "CPU s", "peer's", "peak MiB", "peer's", "")


def machine() -> dict[str, Any]:
    """What was measured on; no name of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30)),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def _number(value: float | None, unit: str = "s") -> str:
    if value is None:
        return "–"
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def _cells(row: Row) -> tuple[str, ...]:
    def bare(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return (
        row.what,
        _number(row.ours, row.unit),
        row.peer_name,
        _number(row.peer, row.unit),
        f"{row.ratio:.2f}",
        bare(row.ours_cpu_s, ".2f"),
        bare(row.peer_cpu_s, ".2f"),
        bare(row.ours_peak_mib, ".0f"),
        bare(row.peer_peak_mib, ".0f"),
        row.judgement,
    )


def as_text(rows: Sequence[Row]) -> str:
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(HEADINGS))]
    texts = []
    for line in lines:
        left = {0, 2, len(HEADINGS) - 1}
        texts.append(
            "  ".join(
                cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
        )
    texts.insert(1, "─" * max(map(len, texts)))
    return "\n".join(texts)


def as_markdown(rows: Sequence[Row], about: dict[str, Any], command: str) -> str:
    """The page docs/bench.md."""
    behind = [row for row in rows if not row.is_limit and row.ratio > 1.02]
    again = f", {about['again']}" if about.get("again") else ""
    lines = [
        "# Beside the others",
        "",
        f"Measured on {about['date']}: {about['cores']} cores, {about['memory_gib']} GiB of memory, {about['system']}, Python {about['python']}. "
        f"Everything in one run of `{command}`{again}; contenders take turns, medians. Made by it; do not edit.",
        "",
        "*of the peer's*: our time (or bytes) divided by theirs, below 1 we are ahead. A *limit* (dd, cat, curl) reads or writes and proves nothing.",
        "",
        f"Ahead in {sum(not row.is_limit for row in rows) - len(behind)} of {sum(not row.is_limit for row in rows)} races"
        + (f"; behind in {len(behind)}, each with its reason." if behind else "."),
        "",
        "![ours beside the peers](bench.svg)",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "".join(" --- |" if at in {0, 2, len(HEADINGS) - 1} else " ---: |" for at in range(len(HEADINGS))),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows),
        "",
        "CPU: seconds, user and system. Peak: of the largest process; – where it was below the bench's own (some 50 MiB).",
        "",
    ]
    return "\n".join(lines)


def as_svg(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """A bar for each race on a logarithmic scale: left of the line we are faster, right of it slower."""
    height, top, left, width = 22, 46, 520, 360
    tall = top + height * len(rows) + 30
    reach = max([2.0, *(max(row.ratio, 1 / row.ratio) for row in rows if 0 < row.ratio < math.inf)])

    def at(ratio: float) -> float:
        bounded = min(max(ratio, 1 / reach), reach)
        return left + width / 2 + math.log(bounded) / math.log(reach) * width / 2

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {tall}" font-family="sans-serif" font-size="12">',
        f'<rect width="{left + width + 90}" height="{tall}" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="14">Ours of the peer\'s ({about["date"]}, {about["cores"]} cores, {about["memory_gib"]} GiB)</text>',
        f'<text x="{at(1)}" y="38" text-anchor="middle" fill="#555555">as fast</text>',
        f'<text x="{left}" y="38" fill="#2a7f4f">faster</text>',
        f'<text x="{left + width}" y="38" text-anchor="end" fill="#b4532a">slower</text>',
    ]
    for number, row in enumerate(rows):
        y = top + number * height
        colour = "#8a8a8a" if row.is_limit else "#2a7f4f" if row.ratio <= 1.02 else "#b4532a"
        x, zero = at(row.ratio), at(1)
        label = f"{row.what} / {row.peer_name}"
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(label[:84])}</text>')
        parts.append(
            f'<rect x="{min(x, zero):.1f}" y="{y + 4}" width="{max(abs(x - zero), 1):.1f}" height="{height - 8}" fill="{colour}"/>'
        )
        parts.append(f'<text x="{left + width + 8}" y="{y + 14}">{row.ratio:.2f}</text>')
    parts.append(f'<line x1="{at(1)}" y1="{top}" x2="{at(1)}" y2="{tall - 26}" stroke="#333333"/>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def write_docs(folder: Path, rows: Sequence[Row], about: dict[str, Any], command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(as_markdown(rows, about, command), encoding="utf-8")
    (folder / "bench.svg").write_text(as_svg(rows, about), encoding="utf-8")
