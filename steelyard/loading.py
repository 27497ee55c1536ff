"""load: does what is held really load; in a bounded child process, judged by content and never by extension."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steelyard import signatures
from steelyard.checkpoint import ByteProof, Inspection, Judgement, LoadReport, Reason, inspect, judge, load_inspected, write_certificate
from steelyard.copies.base import Look
from steelyard.errors import Missing, SteelyardError
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import MIB
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.steps import Run, run_here
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

Device = Literal["auto", "cpu", "cuda"]
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".onnx", ".jit", ".pkl")


@dataclass(frozen=True)
class Loaded:
    """What loading one held file proved, aspect by aspect."""

    report: LoadReport
    judgement: Judgement
    globals: tuple[str, ...] = ()
    sha256: str = ""
    certificate: str = ""

    def as_json(self, model: str) -> dict[str, Any]:
        facts = {**self.report.as_json(), **self.judgement.as_json()}
        if self.certificate:
            facts["certificate"] = self.certificate
        if hint := how_to_allow(model, self.report.reasons, self.globals, self.sha256):
            facts["hint"] = hint
        return facts


def how_to_allow(model: str, reasons: Sequence[Reason], names: Sequence[str], sha256: str) -> str:
    """The line of the config that allows what an untrusted file needs; empty where nothing can, or where something hostile is in it."""
    codes = {reason.code for reason in reasons}
    if any(reason.verdict == "hostile" for reason in reasons) or not codes & {"unknown-global", "torchscript-code"}:
        return ""
    asked = ["torchscript"] if "torchscript-code" in codes else []
    asked += [name for name in names if name not in asked] if "unknown-global" in codes else []
    listed = ", ".join(f'"{name}"' for name in asked)
    return f'if you trust these bytes: [models.{model}] allow_globals = {{ "{sha256 or "<sha256 of the file>"}" = [{listed}] }}'


def weights_files(manifest: Manifest) -> list[FileEntry]:
    """The files of a snapshot that hold weights: by name or, where no name says so, whatever is large; else every file."""
    named = [entry for entry in manifest.files if entry.path.lower().endswith(WEIGHTS)]
    return named or [entry for entry in manifest.files if entry.size_bytes > MIB] or list(manifest.files)


def load(
    site: Site,
    models: Sequence[str] = (),
    *,
    device: Device = "auto",
    timeout_s: float = 600.0,
    sign: Path | None = None,
    run: Run = run_here,
) -> Report:
    """Load every weights file of *models* (none: all) from the store and say what came of it; certificates are signed with the key *sign*, or the config's."""
    report = Report("load")
    key = sign or site.config.certificates.sign_with
    if key is not None:
        from steelyard.checkpoint.signing import read_private_key

        read_private_key(key)  # a key that can't be used is told before a minute of loading
    for model in site.config.chosen(list(models)):
        with report.collecting():
            locked = site.locked_model(model)
            manifest = site.manifest(model, locked.commit) if locked else None
            if manifest is None or not manifest.files:
                raise Missing(path=model, hint=f"nothing is held of it; run: steelyard download {model}")
            for entry in weights_files(manifest):
                with report.collecting():
                    found = run(load_file, site, manifest, entry, device, timeout_s, key)
                    path = site.store.where(manifest, entry.path)
                    ok = found.report.verdict == "ok"
                    report.rows.append(Row(model, entry.path, "store", path, found.as_json(model), 0 if ok else 1))
            outcome = "ok" if all(row.exit_code == 0 for row in report.rows if row.model == model) else "failed"
            site.history.event("load", model, "store", outcome, device=device)
    return report.close()


def load_file(site: Site, manifest: Manifest, entry: FileEntry, device: Device, timeout_s: float, sign: Path | None) -> Loaded:
    """Step: load one file in a child process, and judge its bytes by the manifest. :raises Missing, WrongType, Unreadable:"""
    watch = current_watch()
    allowed = site.config.models[manifest.model].allowed(entry.sha256)
    path = site.store.path_of(manifest, entry.path)
    with watch.job(f"load {entry.path}", entry.size_bytes):
        with LocalFile(path) as source:
            inspection = inspect(source, allow_globals=allowed)
        found = load_inspected(path, inspection, device, timeout_s=timeout_s, stop=watch.stop, allow_globals=allowed)
    proof = proof_of_bytes(site, manifest, entry)
    if proof.state == "bad" and found.verdict == "ok":
        # It loads, yet it is not what was agreed on: rot in a container without checksums looks just like this.
        found = replace(found, verdict="broken", reasons=(Reason("digest-mismatch", proof.sentence), *found.reasons))
    fit = signatures.fit_of(site, manifest.model, entry.path, inspection)
    certificate = ""
    if found.verdict == "ok":
        signatures.record(site, manifest.model, entry.path, entry.sha256, inspection)
        certificate = _certify(path, inspection, found, entry, sign)
    level = logging.INFO if found.verdict == "ok" else logging.WARNING
    log.log(level, "%s · %s: %s on %s", manifest.model, entry.path, found.verdict, found.device or "no device")
    return Loaded(found, judge(inspection, found, fit, proof), inspection.globals, entry.sha256, certificate)


def proof_of_bytes(site: Site, manifest: Manifest, entry: FileEntry) -> ByteProof:
    """Whether the file in the store has the bytes agreed on: at once where it is as it was last proven, by reading every piece where it is not."""
    started = time.monotonic()
    last = site.history.latest("store", manifest.model, manifest.commit, entry.path)
    finding = site.store.judge(manifest, entry, Look("quick"), last.finding if last else None)
    if not finding.ok:
        finding = site.store.judge(manifest, entry, Look())
        site.history.record("store", manifest.model, manifest.commit, entry.path, finding)
    took = time.monotonic() - started
    if finding.ok:
        return ByteProof("ok", "sha256", f"as agreed on; it rests on {finding.proof}", took)
    where = ", ".join(f"{start} to {end}" for start, end in finding.bad_ranges[:3])
    sentence = f"its bytes are not those agreed on ({finding.verdict}{f', bytes {where}' if where else ''}); run: steelyard repair {manifest.model}"
    return ByteProof("bad" if finding.verdict in {"corrupt", "unreadable", "missing"} else "unknown", "digest-mismatch", sentence, took)


def _certify(path: Path, inspection: Inspection, found: LoadReport, entry: FileEntry, sign: Path | None) -> str:
    """Leave <file>.steelyard.json beside the file: other programs can trust in milliseconds what was proven once. A store that can't be written has none."""
    try:
        return str(write_certificate(path, inspection, found, sha256=entry.sha256, sign=sign))
    except (OSError, SteelyardError) as error:
        log.warning("%s: no certificate was written: %s", path.name, error)
        return ""
