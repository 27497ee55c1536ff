"""The records beside a snapshot, the same on every kind of replica: manifest.json, SHA256SUMS and RESTORE.txt for a person without this program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard.disk import gb, read_regular
from steelyard.manifest import Manifest, sha256sums

MANIFEST, SUMS, RESTORE = "manifest.json", "SHA256SUMS", "RESTORE.txt"
PARITY = "steelyard-parity"
"""The folder of a snapshot's parity."""
BACK_TO = "/where/you/want/it"
_COPIED_FROM = re.compile(rf"^    (cp -r .+) {BACK_TO}$", re.MULTILINE)


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


def spoilt_records(folder: Path, manifest: Manifest, parity: Sequence[str] | None) -> dict[str, str]:
    """What a person without this program would be misled by: SHA256SUMS and RESTORE.txt in *folder* that are not what the manifest says -> why.

    Where the drive was mounted when they were written may differ. *parity* as in records(); None where that is not known.
    """
    names = record_names(manifest)
    found: dict[str, str] = {}
    for name in (names[SUMS], names[RESTORE]):
        try:
            data = read_regular(folder / name)
        except FileNotFoundError:
            found[name] = "it is not there"
            continue
        except OSError as error:
            found[name] = error.strerror or "it can't be read"
            continue
        line = _COPIED_FROM.search(data.decode(errors="replace")) if name == names[RESTORE] else None
        right = records(manifest, line[0].strip() if line else "", BACK_TO, parity or ())[name]
        if data != right and not (name == names[RESTORE] and parity is None):
            found[name] = "it is not what the manifest says"
    return found
