"""Values of the config from the environment: STEELYARD_STORE__MODELS and so on. Loaded only where such a variable is set."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steelyard.config import PREFIX, Config
from steelyard.config_errors import broken, location
from steelyard.errors import ConfigBroken

_OF_THE_FILE = frozenset({"int_type", "float_type", "bool_type", "string_type"})
"""What is wrong in a file and right in the environment, where every value is a text."""


def over_environment(content: Mapping[str, Any], names: Sequence[str], path: Path) -> Config:
    """The config of the file's *content* with the values of the variables *names* over it, key by key.

    A name of the file is met without regard to case, "-" and ".", which a shell's variables can't hold: MY_MODEL is models.my-model.
    Lists and tables are written as JSON. :raises ConfigBroken: with the key that is wrong, and the variable where it came from one.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(content))
    variables: dict[tuple[str, ...], str] = {}
    for name in sorted(names):
        keys = name[len(PREFIX) :].split("__")
        if keys[0].lower() not in Config.model_fields:
            if len(keys) == 1:
                continue  # one of ours that is no key of the config, such as STEELYARD_CONFIG
            known = ", ".join(Config.model_fields)
            raise _wrong(name, keys[0].lower(), f"unknown key; the top level has {known}")
        variables[_put(merged, keys, name)] = name
    _check_file(content, variables, path)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise broken(error.errors(include_url=False), path, variables) from error


def _put(table: dict[str, Any], keys: Sequence[str], name: str) -> tuple[str, ...]:
    """Put the value of the variable *name* into *table* at *keys*; the keys as the table has them."""
    at: list[str] = []
    for number, key in enumerate(keys):
        at.append(next((one for one in table if _folded(one) == _folded(key)), key.lower()))
        if number == len(keys) - 1:
            value = _value(os.environ[name], name, ".".join(at))
            if isinstance(value, dict) and isinstance(held := table.get(at[-1]), dict):
                _merge(held, value)
            else:
                table[at[-1]] = value
            break
        table = table.setdefault(at[-1], {})
        if not isinstance(table, dict):
            raise _wrong(name, ".".join(at), "is no table, so there are no keys below it")
    return tuple(at)


def _value(text: str, name: str, key: str) -> object:
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise _wrong(name, key, f'is neither a text nor JSON ({error}); write lists as ["a", "b"]') from error


def _merge(held: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(below := held.get(key), dict):
            _merge(below, value)
        else:
            held[key] = value


def _check_file(content: Mapping[str, Any], variables: Mapping[tuple[str, ...], str], path: Path) -> None:
    """:raises ConfigBroken: for a value of the file that has the wrong type, unless a variable takes its place."""
    try:
        Config.model_validate(content, strict=True)
    except ValidationError as error:
        problems = [one for one in error.errors(include_url=False) if one["type"] in _OF_THE_FILE and location(one) not in variables]
        if problems:
            raise broken(problems, path) from error


def _folded(key: str) -> str:
    return key.lower().replace("-", "_").replace(".", "_")


def _wrong(name: str, key: str, why: str) -> ConfigBroken:
    return ConfigBroken(path=f"{name} in the environment", key=key, why=why, hint=f"correct or unset {name}")
