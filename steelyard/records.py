"""The records beside a snapshot, the same on every kind of replica: manifest.json, SHA256SUMS and RESTORE.txt for a person without this program."""

from __future__ import annotations

from collections.abc import Mapping

from steelyard.disk import gb
from steelyard.manifest import Manifest, sha256sums

MANIFEST, SUMS, RESTORE = "manifest.json", "SHA256SUMS", "RESTORE.txt"


def record_names(manifest: Manifest) -> Mapping[str, str]:
    """What each record is called in this snapshot: its plain name, or "steelyard-" before it where the repo has a file of that name."""
    taken = {entry.path.casefold() for entry in manifest.files}
    return {name: f"steelyard-{name}" if name.casefold() in taken else name for name in (MANIFEST, SUMS, RESTORE)}


def is_record(name: str) -> bool:
    return name.removeprefix("steelyard-") in {MANIFEST, SUMS, RESTORE}


def records(manifest: Manifest, copy_line: str, target: str) -> dict[str, bytes]:
    """File name -> content. *copy_line* is the command that brings the files to *target* by hand. The manifest comes last: it completes the snapshot."""
    names = record_names(manifest)
    text = f"""{manifest.model}: {manifest.repo_id} at commit {manifest.commit}
{len(manifest.files)} file{"s" if len(manifest.files) != 1 else ""}, {gb(manifest.size_bytes)}; first proven {manifest.created_at}; kept by Steelyard.

To bring it back without Steelyard:

    {copy_line}
    cd {target} && sha256sum -c {names[SUMS]}

Every line must end in "OK". With Steelyard: steelyard restore {manifest.model} --revision {manifest.commit}
"""
    return {names[SUMS]: sha256sums(manifest.files), names[RESTORE]: text.encode(), names[MANIFEST]: manifest.dump()}
