"""Names that come from outside (Hub file names, manifests, S3 keys), confined to the root they are used under."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from steelyard.errors import UnsafeName

# Names that Windows, NTFS and exFAT drives can't hold or read as devices; a replica may lie on one.
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")
_PART = r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|$))[a-z0-9_](?:[a-z0-9_.-]{0,250}[a-z0-9_-])?"
_PLAIN = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII | re.IGNORECASE)
"""Names that need no closer look: nearly all, and 10,000 of them are looked at whenever a manifest is read."""
OURS = ".steelyard"
"""The folder of our own records, below every root we write to; no name from outside may lie in it."""


def is_plain(name: str) -> bool:
    """Whether check_name() would take *name* as it stands, told at once; False: it has to look closer."""
    return _PLAIN.fullmatch(name) is not None


def check_name(name: str, root: object = "the folder") -> PurePosixPath:
    """Return *name* as a relative path when it can be nothing but a file below its root.

    :raises UnsafeName: for an absolute path, "..", a drive letter, a backslash, a control character, a reserved or our own name.
    """

    if _PLAIN.fullmatch(name):
        return PurePosixPath(name)

    def refuse(why: str) -> UnsafeName:
        return UnsafeName(name=name, root=str(root), why=why, hint="the other side sent this name; nothing was written")

    if not name or name != name.strip("/") or name.startswith("/"):
        raise refuse("it is empty or absolute")
    if "\\" in name or _DRIVE.match(name):
        raise refuse("it has a backslash or a drive letter")
    if _CONTROL.search(name):
        raise refuse("it has a control character")
    try:
        encoded_parts = [part.encode("utf-8") for part in name.split("/")]
    except UnicodeEncodeError as error:
        raise refuse("it is not valid Unicode") from error
    for part, encoded in zip(name.split("/"), encoded_parts, strict=True):
        if part in {"", ".", ".."}:
            raise refuse("it has an empty part, '.' or '..'")
        if len(encoded) > 255:
            raise refuse("a part of it is longer than 255 bytes")
        if part.split(".")[0].lower() in _RESERVED:
            raise refuse(f"{part!r} is a device name on some file systems")
        if part[-1] in " .":
            raise refuse("a part of it ends in a dot or a space")
        if part.lower() == OURS:
            raise refuse(f"{OURS} is kept for our own records")
    return PurePosixPath(name)


def check_names(names: Iterable[str], root: object = "the folder") -> None:
    """Check every name, and that no two fall together where case does not count (exFAT, NTFS, macOS).

    :raises UnsafeName: at the first that can't be used; also when one name is a folder of another.
    """
    listed = tuple(names)
    if not _are_fit(listed):
        _check_names(listed, str(root))


@functools.lru_cache(maxsize=4)
def _are_fit(names: tuple[str, ...]) -> bool:
    """Remembered: a round reads the same names in the lock and in the manifest of every copy."""
    try:
        _check_names(names, "")
    except UnsafeName:
        return False
    return True


def _check_names(names: tuple[str, ...], root: str) -> None:
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        if not _PLAIN.fullmatch(name):
            check_name(name, root)
        folded = name.casefold()
        other = seen.setdefault(folded, name)
        if other != name:
            raise UnsafeName(name=name, root=root, why=f"it is {other!r} where case does not count")
        while (folded := folded.rpartition("/")[0]) and folded not in folders:
            folders[folded] = name
    for folder in folders.keys() & seen.keys():
        raise UnsafeName(name=folders[folder], root=root, why=f"{seen[folder]!r} is a file and can't be its folder")


def confine(root: Path, name: str) -> Path:
    """Return the path of *name* below *root*; follows no link on the way and never leaves *root*.

    :raises UnsafeName: when the name is unsafe, or an existing folder on the way is a link that leads outside *root*.
    """
    path = root / check_name(name, root)
    parent = path.parent
    if parent != root and not parent.resolve().is_relative_to(root.resolve()):
        raise UnsafeName(name=name, root=str(root), why="a link on the way leads outside")
    return path


def slug(text: str) -> str:
    """*text* with only a-z, 0-9 and hyphens: for artifact keys and file names of ours."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
