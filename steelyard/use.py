"""For the user's own code: `from steelyard import weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steelyard.copies.base import Look
from steelyard.errors import Corrupt, Missing, NotLoadable, UsageError
from steelyard.loading import weights_files
from steelyard.site import Site


def weights(model: str, file: str | None = None, *, config: Path | None = None) -> Path:
    """The path of a model's weights file in the store, proven to be what the Hub published.

    Milliseconds where the file is as it was last proven (size, mtime, ctime, inode), one verify (all cores) where it is not. *file* is its path in the
    repo; it may be left out where the model has one weights file.
    :raises Missing, Corrupt: with the next step in .hint. :raises UsageError: when *file* is needed, or unknown.
    """
    site = Site.open(config)
    site.config.chosen([model])
    locked = site.locked_model(model)
    manifest = site.manifest(model, locked.commit) if locked else None
    if manifest is None or not manifest.files:
        raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
    choices = [entry.path for entry in weights_files(manifest)]
    if file is None and len(choices) != 1:
        raise UsageError(why=f"{model} has {len(choices)} weights files", hint=f"name one of {', '.join(choices[:5])}")
    entry = manifest.get(file or choices[0])
    if entry is None:
        raise UsageError(why=f"{model} has no file {file!r}", hint=f"it has {', '.join(choices[:5])}")
    last = site.history.latest("store", model, manifest.commit, entry.path)
    finding = site.store.judge(manifest, entry, Look("quick"), last.finding if last else None)
    if not finding.ok:
        finding = site.store.judge(manifest, entry, Look())
        site.history.record("store", model, manifest.commit, entry.path, finding)
    if not finding.ok:
        where = site.store.where(manifest, entry.path)
        raise Corrupt(path=where, why=f"{finding.verdict} {finding.why}", ranges=finding.bad_ranges, hint=f"run: steelyard repair {model}")
    return site.store.path_of(manifest, entry.path)


def state_dict(model: str, file: str | None = None, *, config: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """The state dict of a proven weights file, wherever in it the weights are (state_dict, model, …: most tensor bytes win). Needs torch.

    Loaded with weights_only=True, always, and memory-mapped only where our own container check allows it.
    :raises NotLoadable: when it may not be trusted or is no state dict. Errors of weights() else.
    """
    from steelyard.checkpoint import inspect
    from steelyard.source import LocalFile

    path = weights(model, file, config=config)
    with LocalFile(path) as source:
        found = inspect(source)
    if found.verdict not in {"ok", "suspect"}:
        raise NotLoadable(path=str(path), why=f"it is {found.verdict}", reason=found.verdict, hint=f"run: steelyard inspect {path}")
    if found.format == "safetensors":
        from safetensors.torch import load_file

        loaded: dict[str, Any] = load_file(path, device=device)
        return loaded
    import torch

    content: Any = torch.load(path, map_location=device, weights_only=True, mmap=found.format == "torch-zip" and found.verdict == "ok")
    for key in found.weights_path:
        content = content[key]
    if not isinstance(content, dict):
        raise NotLoadable(
            path=str(path), why="its weights are not a dict of tensors", reason="no-state-dict", hint=f"run: steelyard inspect {path}"
        )
    return content
