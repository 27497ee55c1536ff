"""Write docs/reference.md from the code: commands, config keys, exit codes, errors, events. `--check` only says whether it is up to date.

python docs/generate.py [--check]
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from steelyard import errors  # noqa: E402
from steelyard.commands import EXIT_CODES, app  # noqa: E402
from steelyard.config import Config  # noqa: E402

TARGET = ROOT / "docs" / "reference.md"
KINDS = {
    "Size": 'size, "15 GB"',
    "Duration": 'time, "30 days"',
    "AbsolutePath": "absolute path",
    "MountPoint": "absolute path, or false",
    "Percent": 'share, "5%"',
    "Rate": 'rate, "5 MB/s"',
    "UploadWindow": 'hours, "22:00-06:00"',
    "Url": "address, https://…",
    "Texts": "list of texts",
    "Texts | dict[Sha256, Texts]": "list of texts, or such lists by SHA-256",
    "tuple[AbsolutePath, ...]": "list of absolute paths",
    "tuple[Url, ...]": "list of addresses",
    "Money": "number, at least 0",
    "bool": "true or false",
    "int": "number",
    "float": "number",
    "str": "text",
}


def reference() -> str:
    return "\n".join([_head(), _commands(), _exit_codes(), _config(), _errors(), _events()])


def _head() -> str:
    return "# Reference\n\nMade from the code by `python docs/generate.py`; a test fails where it is out of date.\n"


def _commands() -> str:
    text = app.generate_docs(output_format="markdown", heading_level=1)
    text = text[text.index("\n## steelyard ") :]  # the head and the list of commands are in the README
    text = re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)
    common = re.compile(r"^\* `--(?:config|json|here)\b.*\n", re.MULTILINE)
    text = re.sub(r"(?m)^\*\*(?:Parameters|Arguments)\*\*:\s*\n(?=\s*(?:#|\Z))", "", common.sub("", text)).replace(EXIT_CODES, "")
    told = "All take `--config PATH`, `--json`, `--here` (in this process, even where a Prefect API is configured) and `--help`."
    short = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"## Commands\n\n{told}\n\n{short}\n"


def _exit_codes() -> str:
    codes = EXIT_CODES.removeprefix("Exit codes: ")
    head, _, tail = codes.rpartition(". ")
    rows = "\n".join(f"| {code} | {text} |" for code, text in (one.strip().split(" ", 1) for one in head.split(" · ")))
    return f"## Exit codes\n\n| code | means |\n|---|---|\n{rows}\n\n{tail}\n"


# --- config


def _config() -> str:
    environment = (
        "Any key can come from the environment: `STEELYARD_STORE__MODELS` and so on; that wins over the file. Lists are written as JSON there; "
        "case, `-` and `.` of a name don't count (`STEELYARD_MODELS__MY_MODEL__REVISION` is `models.my-model.revision`).\n"
    )
    out = ["## Config\n", environment]
    for name, field in Config.model_fields.items():
        for model in _models_in(field.annotation):
            plain = get_origin(field.annotation) is not dict
            kind = next((get_args(one.annotation)[0] for key, one in model.model_fields.items() if key == "kind"), "")
            title = f"[{name}]" if plain else f"[{name}.NAME]" + (f' with kind = "{kind}"' if kind else "")
            out += [f"### `{title}`\n", "| key | kind | default | means |", "|---|---|---|---|", *_keys(model), ""]
    return "\n".join(out)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in {dict, Annotated, Union, UnionType}:
        for one in get_args(annotation):
            yield from _models_in(one)


def _keys(model: type[BaseModel]) -> Iterator[str]:
    told, kinds = _docstrings(model), _annotations(model)
    for key, field in model.model_fields.items():
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True), kinds.get(key, ""))
        text = " ".join(told.get(key, "").split()).replace("|", "\\|")
        yield f"| `{key}` | {_kind(kinds.get(key, '')).replace('|', 'or')} | {default} | {text} |"


def _bodies(model: type[BaseModel]) -> Iterator[list[ast.stmt]]:
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel and one.__module__.startswith("steelyard"):
            tree = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
            assert isinstance(tree, ast.ClassDef)
            yield tree.body


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Text below a field, as this code base has it."""
    found = {}
    for body in _bodies(model):
        for one, after in itertools.pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, ast.Constant):
                found[one.target.id] = str(text.value)
    return found


def _annotations(model: type[BaseModel]) -> dict[str, str]:
    return {
        one.target.id: ast.unparse(one.annotation)
        for body in _bodies(model)
        for one in body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }


def _kind(text: str) -> str:
    text = text.removesuffix(" | None")
    if match := re.match(r"Annotated\[(.+), (?:Field|AfterValidator|BeforeValidator)\((.*)\)\]$", text):
        limits = dict(re.findall(r"(\w+)=([^,]+)", match[2]))
        words = [f"at least {limits['ge']}"] if "ge" in limits else []
        words += [f"more than {limits['gt']}"] if "gt" in limits else []
        words += [f"at most {limits['le'].replace('_', '')}"] if "le" in limits else []
        return ", ".join([_kind(match[1]), *words])
    if text.startswith("Literal["):
        return " · ".join(f"`{one.strip().strip(chr(39))}`" for one in text[8:-1].split(","))
    if text == "Views":
        return "`copy` · `reflink` · `hardlink` · `auto`"
    return KINDS.get(text, text)


def _value(value: Any, kind: str) -> str:
    if value is None or value is PydanticUndefined:
        return "–"
    if kind.startswith("Size"):
        return f"{value / 1000**3:g} GB" if value % 1000**3 == 0 and value else f"{value / 1024**2:g} MiB"
    if "Duration" in kind:
        return f"{value / 86400:g} days" if value >= 86400 else f"{value:g} s"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    return f"`{value}`" if value != "" else '""'


# --- errors and events


def _errors() -> str:
    def walk(kind: type[errors.SteelyardError]) -> Iterator[type[errors.SteelyardError]]:
        for one in kind.__subclasses__():
            if one.__module__ == errors.__name__:
                yield one
                yield from walk(one)

    rows = [f"| `{one.code}` | {one.exit_code} | {_said(one)} |" for one in walk(errors.SteelyardError)]
    return "\n".join(
        ["## Errors\n", "`errors[].code` of the JSON document.\n", "| code | exit | says |", "|---|---|---|", *dict.fromkeys(rows), ""]
    )


def _said(kind: type[errors.SteelyardError]) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"⟨\1⟩", (kind.__doc__ or "").strip().splitlines()[0])


def _events() -> str:
    """Read, not imported: Prefect takes seconds."""
    told: dict[str, str] = {}
    for node in ast.walk(ast.parse((ROOT / "deployments" / "automations.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and str(key.value).startswith("steelyard.") and isinstance(value, ast.Constant):
                    told[str(key.value)] = str(value.value)
    history = set()
    for path in (ROOT / "steelyard").rglob("*.py"):
        history |= set(re.findall(r'history\.event\(\s*"([a-z-]+)"', path.read_text(encoding="utf-8")))
    out = ["## Events\n", "In Prefect, to build automations on:\n", "| event | means |", "|---|---|"]
    out += [f"| `{name}` | {text} |" for name, text in sorted(told.items())]
    return "\n".join(
        [*out, f"\nIn the history of the store (`.steelyard/history.sqlite`): {', '.join(f'`{one}`' for one in sorted(history))}.", ""]
    )


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            sys.stderr.write("docs/reference.md is out of date; run: python docs/generate.py\n")
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
