"""For the user's own code: `from steelyard import weights, state_dict, expect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steelyard.copies.base import Look
from steelyard.errors import Corrupt, Missing, NotLoadable, UsageError
from steelyard.loading import weights_files
from steelyard.manifest import FileEntry, Manifest
from steelyard.site import Site


def weights(model: str, file: str | None = None, *, config: Path | None = None) -> Path:
    """The path of a model's weights file in the store, proven to be what the Hub published.

    Milliseconds where the file is as it was last proven (size, mtime, ctime, inode), one verify (all cores) where it is not. *file* is its path in the
    repo; it may be left out where the model has one weights file. Where the config names trusted_keys, its certificate must be signed by one of them.
    :raises Missing, Corrupt: with the next step in .hint. :raises UsageError: when *file* is needed, or unknown.
    :raises NotLoadable: when no trusted key vouches for it.
    """
    site = Site.open(config)
    manifest, entry = _entry(site, model, file)
    return _proven(site, manifest, entry)


def state_dict(model: str, file: str | None = None, *, config: Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """The state dict of a proven weights file, wherever in it the weights are (state_dict, model, …: most tensor bytes win). Needs torch.

    Loaded with weights_only=True, always, and memory-mapped only where our own container check allows it. Names that the config allows for these
    bytes (allow_globals) are replaced by inert stand-ins: nothing of theirs is imported.
    :raises NotLoadable: when it may not be trusted or is no state dict. Errors of weights() else.
    """
    from steelyard.checkpoint import inspect
    from steelyard.source import LocalFile

    site = Site.open(config)
    manifest, entry = _entry(site, model, file)
    path = _proven(site, manifest, entry)
    allowed = site.config.models[model].allowed(entry.sha256)
    with LocalFile(path) as source:
        found = inspect(source, allow_globals=allowed)
    if found.verdict not in {"ok", "suspect"}:
        raise NotLoadable(path=str(path), why=f"it is {found.verdict}", reason=found.verdict, hint=f"run: steelyard inspect {path}")
    if found.format == "safetensors":
        from safetensors.torch import load_file

        loaded: dict[str, Any] = load_file(path, device=device)
        return loaded
    from steelyard.checkpoint.load_torch import load_safely, step_into

    content: Any = load_safely(path, allowed, device=device, mapped=found.format == "torch-zip" and found.verdict == "ok")
    for key in found.weights_path:
        content = step_into(content, key)
    if not isinstance(content, dict):
        raise NotLoadable(
            path=str(path), why="its weights are not a dict of tensors", reason="no-state-dict", hint=f"run: steelyard inspect {path}"
        )
    return content


def expect(model: str, state_dict: Mapping[str, Any], file: str | None = None, *, config: Path | None = None) -> Path:
    """Record what your own program expects of a weights file: `expect("mvdream", build_model(…).state_dict())`. Returns where it is kept.

    From then on `inspect`, `load` and `check-updates` say from a file's header alone whether your strict load_state_dict would take it.
    :raises UsageError: when *state_dict* has no tensors, or *file* is needed.
    """
    from steelyard.checkpoint import signature_of
    from steelyard.signatures import record_program

    site = Site.open(config)
    _, entry = _entry(site, model, file)
    wanted = signature_of(state_dict)
    if not wanted.tensors:
        raise UsageError(why="a state dict without a tensor says nothing", hint='write: expect("NAME", model.state_dict())')
    return record_program(site, model, entry.path, wanted)


def _entry(site: Site, model: str, file: str | None) -> tuple[Manifest, FileEntry]:
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
    return manifest, entry


def _proven(site: Site, manifest: Manifest, entry: FileEntry) -> Path:
    model = manifest.model
    last = site.history.latest("store", model, manifest.commit, entry.path)
    finding = site.store.judge(manifest, entry, Look("quick"), last.finding if last else None)
    if not finding.ok:
        finding = site.store.judge(manifest, entry, Look())
        site.history.record("store", model, manifest.commit, entry.path, finding)
    if not finding.ok:
        where = site.store.where(manifest, entry.path)
        raise Corrupt(path=where, why=f"{finding.verdict} {finding.why}", ranges=finding.bad_ranges, hint=f"run: steelyard repair {model}")
    path = site.store.path_of(manifest, entry.path)
    if keys := site.config.certificates.trusted_keys:
        _vouched_for(path, entry, keys, model)
    return path


def _vouched_for(path: Path, entry: FileEntry, keys: tuple[Path, ...], model: str) -> None:
    """The bytes are proven already: what the certificate adds is that a trusted key says they were loaded and found good."""
    from steelyard.checkpoint.certificate import certificate_path, parse_certificate
    from steelyard.errors import BadRecord

    hint = f"run: steelyard load {model} --sign KEY.pem, where the key is"
    try:
        certificate = parse_certificate(certificate_path(path), keys)
    except (Missing, BadRecord) as error:
        raise NotLoadable(path=str(path), why=f"no trusted key vouches for it: {error.message}", reason="unsigned", hint=hint) from error
    if certificate.sha256 != entry.sha256:
        raise NotLoadable(path=str(path), why="its signed certificate is of other bytes", reason="unsigned", hint=hint)
