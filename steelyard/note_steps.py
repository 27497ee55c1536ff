"""The end of a migration note: what to do, step by step, and how to go back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.lock import LockedFile, LockedModel
from steelyard.markdown import code
from steelyard.scans import GRAVE, rank


def steps(
    model: str, locked: LockedModel, facts: Mapping[str, Any], upstream: Mapping[str, LockedFile], tensors: Mapping[str, Any]
) -> list[str]:
    found = _before(locked, facts, tensors)
    takes = any(path in upstream for path in facts["changed_files"])
    if facts.get("bad_files"):
        return _numbered(
            [
                *found,
                "Stay with what you hold; nothing forces you to take it. `update` would refuse it too, and leave what you hold current",
            ]
        )
    if not takes:
        return _numbered([*found, f"Then take it: `steelyard update {model}`. What you hold stays until then, and after"])
    if facts.get("policy") == "approve" and facts.get("plan"):
        found.append(
            f"Approve just this: `steelyard update {model} --plan {facts['plan']}`, or run the deployment apply-update with that plan in the UI"
        )
    else:
        found.append(
            f"Take it: `steelyard update {model}`. It is fetched beside what you hold, proven, loaded and compared, and only then current"
        )
    found.append("Try your program with it, then run `steelyard backup`, so that the replicas have it too")
    found.append("Commit the changed `steelyard.lock`: with it `steelyard download --locked` gives other machines the same bytes")
    return _numbered(found)


def _before(locked: LockedModel, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[str]:
    """What to do before anything is taken."""
    steps = []
    if rank(str(facts.get("scan"))) >= GRAVE or facts.get("bad_files"):
        file = next((path for path in facts["changed_files"] if path not in facts["removed_files"]), "FILE")
        upstream_commit = facts["upstream_commit"]
        # The name is a stranger's, and the line is made to be pasted into a shell.
        source = f"steelyard inspect {shlex.quote(f'hf://{locked.repo_id}@{upstream_commit}/{file}')}"
        steps.append(f"Look into it without loading it: {code(source, 300)}")
    moved = facts.get("renamed_files") or {}
    for path in facts.get("removed_files") or ():
        if path in moved:
            steps.append(f"Put {code(moved[path])} in the place of {code(path)} under `files` in the config, and where your code opens it")
        else:
            steps.append(f"Decide what takes the place of {code(path)}; your replicas keep it")
    if facts.get("bad_files"):
        return steps
    if any(tensors.get(kind) for kind in ("added", "removed", "reshaped")):
        steps.append(
            "Adapt the code that loads it first: the removed, added and reshaped names above are those that its strict loader will name"
        )
    elif facts["compatible"] is False and not facts.get("removed_files"):
        steps.append("Adapt the code that loads it first, or stay with what you hold: nothing forces you to take it")
    elif facts["compatible"] is None:
        steps.append("Read what changed above, and try it on a copy of your program before you rely on it")
    return steps


def _numbered(steps: Sequence[str]) -> list[str]:
    return [f"{number}. {step}." for number, step in enumerate(steps, 1)]


def way_back(model: str, locked: LockedModel) -> list[str]:
    return [
        f"- `steelyard rollback {model}`: {locked.commit[:8]} is current again within seconds, without the network, as long as it is kept here",
        f"- later, from a replica: `steelyard restore {model} --revision {locked.commit[:12]} --into DIR`",
    ]
