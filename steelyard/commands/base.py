"""What every command shares: the program, its common options, and what a command gives to cli.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from steelyard import __version__
from steelyard.report import Report
from steelyard.terminal import show_report
from steelyard.verbs import Call

EXIT_CODES = """\
Exit codes: 0 all well · 1 something is missing, corrupt, untrusted or does not load · 2 wrong usage or config · \
3 refused before starting (space, mount absent, read-only, locked by another run) · 4 the other side failed \
(unreachable, access denied, gone) · 130 stopped. When several apply, the smallest that is not 0."""


app = App(
    name="steelyard",
    help="Keeps large model weights downloaded, verified, loadable, backed up and current, and proves it by restoring them.",
    help_epilogue=EXIT_CODES,
    help_format="plaintext",
    version=__version__,
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    config: Path | None = None
    """The config file; else STEELYARD_CONFIG, else ./steelyard.toml."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Exactly one JSON document on stdout; everything else goes to stderr."""
    here: Annotated[bool, Parameter(negative="")] = False
    """Run in this process even where a Prefect API is configured."""


COMMON = Common()


Models = Annotated[str, Parameter(help="Names from the config; none means all.")]


@dataclass(frozen=True)
class Direct:
    """A command that is no flow: *make* gives its report; *show* prints it where no JSON was asked for."""

    command: str
    make: Callable[[], Report]
    show: Callable[[Report], None] = show_report


Asked = Call | Direct


def passed_on(common: Common) -> list[str]:
    return [*(["--config", str(common.config)] if common.config else []), *(["--json"] if common.json else [])]


def become(module: str, arguments: Sequence[str]) -> Report:
    """Replace this process by a module of the upper floors: the domain knows that they exist, and imports nothing of them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
