"""The migration note: what an upstream change means for the user, in Markdown, from facts only. One a revision, kept with the model's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.disk import gb, write_atomically
from steelyard.lock import LockedFile, LockedModel
from steelyard.markdown import code, escaped, fenced
from steelyard.names import confine
from steelyard.note_steps import steps, way_back
from steelyard.scans import GRAVE, rank
from steelyard.site import Site
from steelyard.upstream import Commit

MOST_NAMES = 40
MOST_FILES = 100
MOST_COMMITS = 30
_PARTS = {"unet": "UNet", "vae": "VAE", "text encoder": "text encoder", "controlnet": "ControlNet"}


@dataclass(frozen=True)
class Told:
    """What the note has beyond the facts of the row: *commits* newest first, *diffs* of small files, *upstream* files, the last transfer's rate [bytes/s]."""

    commits: Sequence[Commit] = ()
    diffs: Mapping[str, str] = field(default_factory=dict)
    upstream: Mapping[str, LockedFile] = field(default_factory=dict)
    rate_bytes_per_s: float | None = None


def note_path(site: Site, model: str, commit: str) -> Path:
    return confine(site.store.ours / "notes", f"{model}/{commit}.md")


def write_note(site: Site, model: str, locked: LockedModel, facts: Mapping[str, Any], told: Told) -> Path:
    """Write the note for *facts* (a check-updates row) and return its path; the same facts give the same bytes."""
    path = note_path(site, model, str(facts["upstream_commit"]))
    text = render(model, locked, facts, told, copies=1 if site.config.store.views in {"hardlink", "reflink"} else 2).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text)
    return path


def render(model: str, locked: LockedModel, facts: Mapping[str, Any], told: Told, *, copies: int = 2) -> str:
    """*copies*: how often the new bytes will lie on the drive, 2 where the hub cache gets its own."""
    new, tensors = str(facts["upstream_commit"]), facts.get("tensors") or {}
    lines = [f"# {model}: {code(locked.repo_id)} {locked.commit[:12]} → {new[:12]}", "", _verdict(facts, tensors), ""]
    lines += _warnings(locked, facts)
    lines += ["## In short", "", *_short(locked, facts, told, tensors, copies), "", "## What changed", ""]
    changed = facts["changed_files"]
    lines += [f"- {code(path)}: {_file(locked.get(path), told.upstream.get(path), facts)}" for path in changed[:MOST_FILES]]
    lines += [f"- … and {len(changed) - MOST_FILES} more files"] if len(changed) > MOST_FILES else []
    if sentences := list(facts.get("sentences") or ()):
        lines += ["", "## What it means for code that loads it", "", *(f"- {escaped(one)}" for one in sentences[:MOST_NAMES])]
    if tensors:
        lines += ["", "## Tensors", "", *_tensors(tensors)]
    if told.commits:
        lines += ["", "## Commits in between", "", *_commits(told.commits)]
    if told.diffs:
        lines += ["", "## READMEs and configs", ""]
        for path, diff in told.diffs.items():
            lines += [f"{code(path)}:", "", *fenced(diff, "diff"), ""]
        lines.pop()
    lines += ["", "## What to do", "", *steps(model, locked, facts, told.upstream, tensors)]
    lines += ["", "## How to go back", "", *way_back(model, locked), ""]
    return "\n".join(lines)


def _verdict(facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    compatible = facts["compatible"]
    if bad := dict(facts.get("bad_files") or {}):
        told = " and ".join(f"{code(name)} is {verdict}" for name, verdict in bad.items())
        return f"**Do not take it as it is**: the new {told}; why stands below. Nothing was downloaded but its headers."
    if compatible is True and tensors:
        return "**Drop-in**: the same tensor names and shapes, so a strict `load_state_dict` takes it."
    if compatible is True:
        return "**Drop-in**: no file that a program loads changes for it."
    if compatible is False and facts.get("removed_files") and not tensors:
        return "**Not drop-in**: a file that is held is gone upstream."
    if compatible is False:
        return "**Not drop-in**: code that loads the held version does not take this one as it is; why stands below."
    return "**Unknown** whether it is drop-in; why stands below. The load check of `update` tells whether it loads, not whether your code takes it."


def _warnings(locked: LockedModel, facts: Mapping[str, Any]) -> list[str]:
    found = []
    if rank(str(facts.get("scan"))) >= GRAVE:
        level = escaped(str(facts["scan"]))
        found.append(f"> **The Hub's own scan calls a file of this revision {level}.** Run `steelyard inspect` on it before you take it.")
    if facts.get("rewritten"):
        found.append(
            f"> **History was rewritten upstream**: {escaped(str(facts.get('why', '')))}. Keep a replica of {locked.commit[:8]}: `steelyard backup`."
        )
    return [line for one in found for line in (one, "")]


def _short(locked: LockedModel, facts: Mapping[str, Any], told: Told, tensors: Mapping[str, Any], copies: int) -> list[str]:
    commits = len(told.commits)
    later = f", {commits} commit{'s' if commits != 1 else ''} later, the newest of {told.commits[0].date[:10]}" if commits else ""
    lines = [f"- held: `{locked.commit}`, agreed on {locked.locked_at[:10]}", f"- upstream: `{facts['upstream_commit']}`{later}"]
    if part := _only_part(tensors):
        lines.append(f"- touched: {part}")
    memory = facts.get("memory") or {}
    if memory.get("before") and memory["before"] != memory.get("after"):
        lines.append(f"- memory of the weights: {_dtypes(memory['before'])} → {_dtypes(memory['after'])}")
    elif memory.get("after"):
        lines.append(f"- memory of the weights: {_dtypes(memory['after'])}, as before")
    if any(path in told.upstream for path in facts["changed_files"]):
        lines += _cost(facts, told, copies)
    was, now = locked.scan or "nothing", facts.get("scan") or "nothing"
    lines.append(f"- the Hub's scan says {escaped(now)}" + ("" if was == now else f"; of the held version it said {escaped(was)}"))
    if facts.get("renamed_to"):
        lines.append(f"- the repo is now called {code(str(facts['renamed_to']))}: put that into the config")
    return lines


def _cost(facts: Mapping[str, Any], told: Told, copies: int) -> list[str]:
    """What an update fetches, how long that takes, and the room it needs."""
    cost, fetch = int(facts["cost_bytes"]), int(facts.get("fetch_bytes", facts["cost_bytes"]))
    shared = f" of {gb(cost)}; the rest is in the held files" if fetch < cost else ""
    most = "" if facts.get("fetch_bytes_exact", True) else "at most "
    seconds = fetch / told.rate_bytes_per_s if told.rate_bytes_per_s else None
    time = (
        f", about {_span(seconds)} at the {gb(told.rate_bytes_per_s or 0)}/s of the last transfer"
        if seconds is not None
        else ", for how long is not known"
    )
    room = f"- room: {gb(cost * copies)} beside what is held" + (
        f" ({gb(cost)} in the store and as much in the hub cache)" if copies > 1 else ""
    )
    return [f"- to fetch: {most}{gb(fetch)}{shared}{time}", f"{room}; the held version stays, so that you can go back"]


def _dtypes(counts: Mapping[str, int]) -> str:
    return (
        " + ".join(f"{gb(nbytes)} {escaped(dtype)}" for dtype, nbytes in sorted(counts.items(), key=lambda pair: -pair[1]) if nbytes)
        or "none"
    )


def _span(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _only_part(tensors: Mapping[str, Any]) -> str:
    """ "UNet only (2 of 686 tensors)", or the parts by name."""
    touched = [
        part
        for part in tensors.get("parts") or ()
        if any(part.get(kind) for kind in ("added", "removed", "reshaped", "retyped", "changed"))
    ]
    if not touched:
        return ""
    names = [_PARTS.get(part["part"]) or code(part["part"], 60) for part in touched]
    if len(touched) > 1:
        return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    part = touched[0]
    return f"{names[0]} only ({sum(part.get(kind) or 0 for kind in ('added', 'removed', 'reshaped', 'retyped', 'changed'))} of {part['tensors']} tensors)"


def _file(old: LockedFile | None, new: LockedFile | None, facts: Mapping[str, Any]) -> str:
    if old is None and new is not None:
        return f"new, {gb(new.size_bytes)}"
    assert old is not None
    if new is None:
        moved = (facts.get("renamed_files") or {}).get(old.path)
        return f"removed upstream; the very same bytes are there as {code(moved)} now" if moved else "removed upstream"
    size = gb(new.size_bytes) if old.size_bytes == new.size_bytes else f"{gb(old.size_bytes)} → {gb(new.size_bytes)}"
    return f"other content ({size}, `{old.etag[:12]}` → `{new.etag[:12]}`)"


def _tensors(tensors: Mapping[str, Any]) -> list[str]:
    lines = []
    for part in tensors.get("parts") or ():
        touched = [f"{part[kind]} {kind}" for kind in ("added", "removed", "reshaped", "retyped", "changed") if part.get(kind)]
        if touched:
            lines.append(
                f"- {_PARTS.get(part['part']) or code(part['part'], 60)}: {', '.join(touched)} of {part['tensors'] or part.get('removed')}"
            )
    details = tensors.get("details") or {}
    for kind, meaning in (
        ("removed", "a strict loader misses them"),
        ("added", "a strict loader does not expect them"),
        ("reshaped", "a strict loader refuses their shapes"),
        ("retyped", "other dtypes: memory and precision change, a strict loader casts them"),
        ("changed", "the same names and shapes, other values"),
    ):
        names = list(tensors.get(kind) or ())
        if names:
            more = f" … and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            told = (f"{code(name)} ({escaped(details[name], 80)})" if name in details else code(name) for name in names[:MOST_NAMES])
            lines.append(f"- {kind} ({len(names)}; {meaning}): {', '.join(told)}{more}")
    if tensors.get("unknown"):
        lines.append(
            f"- {tensors['unknown']} tensors have the same names and shapes; whether their values differ is not known without reading both"
        )
    return lines or ["- no tensor differs"]


def _commits(commits: Sequence[Commit]) -> list[str]:
    lines = [
        f"- {escaped(one.date[:10])} `{one.commit[:8]}` {code(one.title)} by {code(one.authors or '?', 80)}"
        for one in commits[:MOST_COMMITS]
    ]
    return [*lines, f"- … and {len(commits) - MOST_COMMITS} older ones"] if len(commits) > MOST_COMMITS else lines
