"""The records beside a snapshot, the same on every kind of replica: manifest.json, SHA256SUMS and RESTORE.txt for a person without this program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steelyard.disk import gb
from steelyard.manifest import Manifest, sha256sums

MANIFEST, SUMS, RESTORE = "manifest.json", "SHA256SUMS", "RESTORE.txt"
PARITY = "steelyard-parity"
"""The folder of a snapshot's parity."""


def record_names(manifest: Manifest) -> Mapping[str, str]:
    """What each record is called in this snapshot: its plain name, or "steelyard-" before it where the repo has a file of that name."""
    taken = {entry.path.casefold() for entry in manifest.files}
    return {name: f"steelyard-{name}" if name.casefold() in taken else name for name in (MANIFEST, SUMS, RESTORE)}


def is_record(name: str) -> bool:
    return name.removeprefix("steelyard-") in {MANIFEST, SUMS, RESTORE}


def records(manifest: Manifest, copy_line: str, target: str, parity: Sequence[str] = ()) -> dict[str, bytes]:
    """File name -> content. *copy_line* is the command that brings the files to *target* by hand; *parity* are the par2 files to mend them with.

    The manifest comes last: it completes the snapshot.
    """
    names = record_names(manifest)
    text = f"""{manifest.model}: {manifest.repo_id} at commit {manifest.commit}
{len(manifest.files)} file{"s" if len(manifest.files) != 1 else ""}, {gb(manifest.size_bytes)}; first proven {manifest.created_at}; kept by Steelyard.

To bring it back without Steelyard:

    {copy_line}
    cd {target} && sha256sum -c {names[SUMS]}

Every line must end in "OK". With Steelyard: steelyard restore {manifest.model} --revision {manifest.commit}
"""
    if parity:
        lines = "\n".join(f"    par2 repair -B . {one}" for one in parity)
        text += f"""
Where a line does not end in "OK", the parity beside the files may mend it (Debian: apt-get install par2), in {target}:

{lines}

Then check again. With Steelyard: steelyard repair {manifest.model} --copy NAME (this drive's name in the config).
"""
    return {names[SUMS]: sha256sums(manifest.files), names[RESTORE]: text.encode(), names[MANIFEST]: manifest.dump()}
