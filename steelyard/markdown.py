"""Words of strangers (commit titles, file and tensor names, READMEs) in our Markdown: shown as they are, with no say in what stands around them."""

from __future__ import annotations

import re
import unicodedata

MOST_CHARACTERS = 160


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """*text* on one line, without control characters and without marks that turn or hide what follows; at most *most* characters."""
    line = " ".join("".join(_visible(letter) for letter in text[: 20 * most]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def code(text: str, most: int = MOST_CHARACTERS) -> str:
    """*text* as a code span: nothing in it is a link, an image, HTML or emphasis. Its fence is longer than any run of backticks in it."""
    line = shown(text, most) or " "
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def fenced(text: str, kind: str = "", *, most_lines: int = 60, most_columns: int = 200) -> list[str]:
    """The lines of *text* as a code block that nothing in it can end; what is beyond *most_lines* is counted."""
    lines = ["".join(_visible(letter) for letter in line)[:most_columns].rstrip() for line in text.split("\n")]
    left = len(lines) - most_lines
    lines = lines[:most_lines]
    fence = "`" * max(3, *(_longest_run(line) + 1 for line in lines)) if lines else "```"
    return [f"{fence}{kind}", *lines, *([f"… and {left} more lines"] if left > 0 else []), fence]


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall(r"`+", line)), default=0)


def _visible(letter: str) -> str:
    # Controls, marks that change the direction of text, halves of pairs, line and paragraph separators.
    return letter if letter >= " " and unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else " "


_MEANING = re.compile(r"([\\`*_\[\]<>&~|#])")


def escaped(text: str, most: int = 400) -> str:
    """A sentence of ours that may quote strangers: every letter stands for itself, and no address becomes a link."""
    line = _MEANING.sub(r"\\\1", shown(text, most))
    return line.replace("://", "\\://").replace("www.", "www\\.").replace("@", " at ")
