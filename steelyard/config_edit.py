"""Changing a value of the user's config by command: that line and no other, comments and order kept, checked before it is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steelyard.config import Config, parse_config
from steelyard.disk import write_atomically
from steelyard.errors import ConfigBroken, ReadOnly, UsageError


@dataclass(frozen=True)
class ConfigEdit:
    """A change that can be made: *config* is what the file will say, the environment included."""

    path: Path
    data: bytes
    config: Config
    changed: bool

    def write(self) -> None:
        """In one step; a config that is a link stays one. :raises ReadOnly, NoSpace:"""
        if self.changed:
            real = self.path.resolve()
            write_atomically(real, self.data, real.stat().st_mode & 0o777)


def plan_edit(path: Path, values: Mapping[str, str]) -> ConfigEdit:
    """Set *values* ("store.views" -> "copy") in the config at *path*; nothing is written yet.

    :raises UsageError: when the environment says otherwise and would win. :raises ReadOnly: when the file can't be replaced.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    before = path.read_bytes()
    try:
        document = tomlkit.parse(before.decode())
        for dotted, value in values.items():
            table, _, key = dotted.partition(".")
            if table not in document:
                document[table] = tomlkit.table()
            document[table][key] = value
        data = tomlkit.dumps(document).encode()
    except (TOMLKitError, UnicodeDecodeError, TypeError) as error:
        lines = ", ".join(f'{dotted} = "{value}"' for dotted, value in values.items())
        raise ConfigBroken(
            path=str(path), key="the file", why=f"can't be changed by command ({error})", hint=f"set by hand: {lines}"
        ) from error
    config = parse_config(data, path)
    for dotted, value in values.items():
        table, _, key = dotted.partition(".")
        if str(getattr(getattr(config, table), key)) != value:
            name = f"STEELYARD_{table}__{key}".upper()
            raise UsageError(
                why=f"{name} is set in the environment and wins over {path}", hint=f"unset it, or set it to {value} where it is set"
            )
    real = path.resolve()
    if data != before and not (os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)):
        lines = ", ".join(f'{dotted} = "{value}"' for dotted, value in values.items())
        raise ReadOnly(
            place=str(real), why="the config has to be changed and can't be written", hint=f"make it writable, or set by hand: {lines}"
        )
    return ConfigEdit(path, data, config, data != before)
