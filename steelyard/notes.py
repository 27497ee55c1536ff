"""The migration note: what an upstream change means for the user, in Markdown, from facts only. One a revision, kept with the model's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.disk import gb, write_atomically
from steelyard.lock import LockedFile, LockedModel
from steelyard.names import confine
from steelyard.site import Site

MOST_NAMES = 40


def note_path(site: Site, model: str, commit: str) -> Path:
    return confine(site.store.ours / "notes", f"{model}/{commit}.md")


def write_note(
    site: Site, model: str, locked: LockedModel, facts: Mapping[str, Any], upstream: Mapping[str, LockedFile], commits: Sequence[Commit]
) -> Path:
    """Write the note for *facts* (a check-updates row) and return its path; the same facts give the same bytes."""
    path = note_path(site, model, str(facts["upstream_commit"]))
    text = render(model, locked, facts, upstream, commits).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text)
    return path


Commit = tuple[str, str, str, str]
"""commit id, title, authors, date (ISO 8601)"""


def render(model: str, locked: LockedModel, facts: Mapping[str, Any], upstream: Mapping[str, LockedFile], commits: Sequence[Commit]) -> str:
    new, compatible, tensors = str(facts["upstream_commit"]), facts["compatible"], facts.get("tensors") or {}
    lines = [f"# {model}: {locked.repo_id} {locked.commit[:12]} → {new[:12]}", "", _verdict(compatible, tensors), "", "## What changed", ""]
    for path in facts["changed_files"]:
        lines.append(f"- `{path}`: {_file(locked.get(path), upstream.get(path))}")
    if facts.get("renamed_to"):
        lines.append(f"- The repo is now called `{facts['renamed_to']}`; put that into the config.")
    if facts.get("scan") and facts["scan"] != locked.scan:
        lines.append(f"- The Hub's own scan said {locked.scan or 'nothing'} and says {facts['scan']} now.")
    if commits:
        lines += [
            "",
            "## Commits in between",
            "",
            *(f"- {date[:10]} `{one[:8]}` {_line(title)} ({_line(authors)})" for one, title, authors, date in commits),
        ]
    if tensors:
        lines += ["", "## Tensors", "", *_tensors(tensors)]
    lines += ["", "## What to do", "", *_steps(model, locked, facts, tensors), ""]
    return "\n".join(lines)


def _verdict(compatible: bool | None, tensors: Mapping[str, Any]) -> str:
    if compatible is True:
        return "**Drop-in**: the same tensor names and shapes, so a strict `load_state_dict` takes it."
    if compatible is False and tensors:
        return "**Not drop-in**: a strict `load_state_dict` of the present code refuses it; the names are below."
    if compatible is False:
        return "**Not drop-in**: a file that is held is gone upstream."
    return "**Unknown** whether it is drop-in: the headers could not be compared. The load check of `update` tells."


def _file(old: LockedFile | None, new: LockedFile | None) -> str:
    if old is None and new is not None:
        return f"new, {gb(new.size_bytes)}"
    if new is None:
        return "removed upstream"
    assert old is not None
    size = gb(new.size_bytes) if old.size_bytes == new.size_bytes else f"{gb(old.size_bytes)} → {gb(new.size_bytes)}"
    return f"other content ({size}, `{old.etag[:12]}` → `{new.etag[:12]}`)"


def _tensors(tensors: Mapping[str, Any]) -> list[str]:
    lines = []
    for part in tensors.get("parts") or ():
        touched = [f"{part[kind]} {kind}" for kind in ("added", "removed", "reshaped", "retyped", "changed") if part.get(kind)]
        if touched:
            lines.append(f"- {part['part']}: {', '.join(touched)} of {part['tensors']}")
    for kind, meaning in (
        ("removed", "names that a strict loader misses"),
        ("added", "names that a strict loader does not expect"),
        ("reshaped", "other shapes: a strict loader refuses them"),
        ("retyped", "other dtypes: memory and precision change"),
        ("changed", "other values"),
    ):
        names = list(tensors.get(kind) or ())
        if names:
            more = f" … and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"- {kind} ({len(names)}; {meaning}): {', '.join(f'`{name}`' for name in names[:MOST_NAMES])}{more}")
    if tensors.get("unknown"):
        lines.append(f"- {tensors['unknown']} tensors whose values can't be compared without reading them")
    return lines or ["- no tensor differs"]


def _steps(model: str, locked: LockedModel, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[str]:
    steps = [
        f"Fetch, prove, load and switch ({gb(int(facts['cost_bytes']))} to fetch; {locked.commit[:8]} is kept beside it): `steelyard update {model}`",
        f"Should it not do what you want: `steelyard rollback {model}` (no network, seconds)",
        "Commit the changed `steelyard.lock`, so that other machines get the same bytes",
    ]
    if facts["compatible"] is False and tensors:
        steps.insert(
            0, "Adapt the code that loads it first: the removed, added and reshaped names above are what its strict loader will name"
        )
    if facts.get("removed_files"):
        steps.insert(
            0, f"Decide what takes the place of {', '.join(f'`{one}`' for one in facts['removed_files'])}; replicas keep the old revision"
        )
    return [f"{number}. {step}." for number, step in enumerate(steps, 1)]


def _line(text: str) -> str:
    """One line without Markdown of somebody else's."""
    return " ".join(text.split())[:120].replace("`", "'").replace("<", "‹").replace("[", "(").replace("]", ")")
