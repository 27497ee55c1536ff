"""Commands in this process: what is tested here is what they do, and starting a process for each costs more than that."""

from __future__ import annotations

import contextlib
import io
import json
import os
from unittest import mock

from steelyard.cli import main
from tests.backup.conftest import held, plug, second
from tests.conftest import Done, World

__all__ = ["held", "plug", "quick", "second"]


def quick(world: World, *arguments: str) -> Done:
    """As World.run, without a process of its own."""
    out, code = io.StringIO(), 0
    with mock.patch.dict(os.environ, world.environment, clear=True), contextlib.redirect_stdout(out):
        try:
            main([*arguments, "--config", str(world.config), "--json", "--here"])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, json.loads(out.getvalue()), out.getvalue(), "")
