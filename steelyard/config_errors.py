"""What pydantic finds wrong in a config, as one sentence that names the key. Loaded only when something is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic_core import ErrorDetails

from steelyard.errors import ConfigBroken
from steelyard.units import Wrong

_SAID = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "union_tag_not_found": 'needs kind = "mount" or kind = "s3"',
    "union_tag_invalid": 'needs kind = "mount" or kind = "s3"',
    "too_short": "must name at least one",
    "tuple_type": 'must be a list, ["…", "…"]',
    "string_type": "must be a text in quotes",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table of its own, with keys below it"),
}
"""What pydantic's types of errors come to in the user's words."""


def location(problem: ErrorDetails) -> tuple[str, ...]:
    """The keys as the user's file has them, of a problem that pydantic found."""
    found = [str(part) for part in problem["loc"]]
    # pydantic adds the kind of a replica, and the branches of a union, which it writes with brackets.
    if found[:1] == ["replicas"] and len(found) > 2:
        del found[2]
    return tuple(part for part in found if not set("[(") & set(part))


def broken(problems: Sequence[ErrorDetails], path: Path, variables: Mapping[tuple[str, ...], str] | None = None) -> ConfigBroken:
    """The first problem as ours. *variables*: keys that came from the environment, and under which name."""
    first, at = problems[0], location(problems[0])
    why = _SAID.get(first["type"], first["msg"].removeprefix("Value error, ").replace("Input should be", "must be"))
    if isinstance(cause := first.get("ctx", {}).get("error"), Wrong):
        at, why = (*at, *cause.key.split(".")), cause.why
    if len(problems) > 1:
        why += f" (and {len(problems) - 1} more)"
    key = ".".join(at) or "config"
    for keys, name in (variables or {}).items():
        if at and keys[: len(at)] == at[: len(keys)]:
            return ConfigBroken(path=f"{name} in the environment", key=key, why=why, hint=f"correct or unset {name}")
    return ConfigBroken(path=str(path), key=key, why=why)
