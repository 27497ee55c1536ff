"""A picture in, one HTML file out: everything escaped, written atomically."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import humanize
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steelyard import __version__
from steelyard.disk import gb, write_atomically
from steelyard.page import plots
from steelyard.page.picture import Picture, bad_copies
from steelyard.page.words import GLYPHS, STATE_WORDS, VERDICT_STATES, ago, day, moment, span

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: Path, picture: Picture) -> Path:
    """The page of *picture* at *path*: the old one or the new one stands there, never half of one. :raises Refused: and its kind."""
    # A surrogate in a hostile file name has no UTF-8.
    write_atomically(path, render(picture).encode("utf-8", "replace"))
    return path


def render(picture: Picture) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"gb": gb, "day": day, "moment": moment, "ago": ago, "span": span, "number": humanize.intcomma}
    return environment.get_template("status.html.j2").render(**_context(picture))


def _context(picture: Picture) -> dict[str, Any]:
    counts = dict.fromkeys(("red", "amber", "unknown", "green"), 0)
    for model in picture.models:
        counts[model["restorable"]["state"]] += 1
    return {
        "picture": picture,
        "broken": [(model["model"], copy, model["copies"][copy]["verdict"]) for model in picture.models for copy in bad_copies(model)],
        "counts": counts,
        "plots": plots,
        "glyphs": GLYPHS,
        "state_words": STATE_WORDS,
        "verdict_states": VERDICT_STATES,
        "version": __version__,
        "as_time": datetime.fromisoformat,
        "now": picture.at,
    }
