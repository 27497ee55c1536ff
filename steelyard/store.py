"""The primary copy on the data drive: models folder, manifests, model_info.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from steelyard.config import Config
from steelyard.copies.base import CopyKind
from steelyard.copies.folder import FolderCopy
from steelyard.disk import existing_parent, make_folder, probe_write, read_regular, write_atomically
from steelyard.errors import BadRecord, Missing, ReadOnly, Refused
from steelyard.fstab import refuse_bare
from steelyard.manifest import Manifest, unseal
from steelyard.names import confine

MOVED = "moved.json"
"""Left in the .steelyard of a store's former place: whoever still names it is told where the store is."""


class Store(FolderCopy):
    """Where programs look for weights. Its manifests lie in .steelyard/manifests/<model>/<commit>.json."""

    name = "store"
    kind: CopyKind = "store"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.store.models
        self.ours = config.store.ours
        self._parsed: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}

    def path_of(self, manifest: Manifest, path: str) -> Path:
        return self.path_of_model(manifest.model, path)

    def path_of_model(self, model: str, path: str) -> Path:
        return confine(self.config.folder(model), path)

    def ready(self, *, write: bool) -> None:
        """:raises MountAbsent: when its drive is not mounted. :raises ReadOnly: when the models folder can't be made or written.

        :raises Missing: when there is no store yet to read.
        """
        if write:
            refuse_bare(self.root)
            if self.root.exists() and not self.root.is_dir():
                raise ReadOnly(place=str(self.root), why="it is not a folder")
            self._is_still_here()
            make_folder(self.root)
            probe_write(self.root)
            make_folder(self.ours)
        elif not self.root.is_dir():
            raise Missing(path=str(self.root), hint="run: steelyard download")

    def _is_still_here(self) -> None:
        """:raises Refused: where a move left word that the store is elsewhere now."""
        word = self.ours / MOVED
        try:
            to = str(unseal(read_regular(word), word)["to"])
        except (OSError, BadRecord, KeyError):
            return
        raise Refused(
            why=f"the store was moved from {self.root} to {to}, and this config still names the former place",
            hint=f'set models = "{to}" under [store] in the config; to use the former place again remove {word}',
        )

    # --- manifests

    def _manifest_path(self, model: str, commit: str) -> Path:
        return self.ours / "manifests" / model / f"{commit}.json"

    def commits(self, model: str) -> list[str]:
        folder = self.ours / "manifests" / model
        found = [(path.stat().st_mtime_ns, path.stem) for path in folder.glob("*.json")] if folder.is_dir() else []
        return [commit for _, commit in sorted(found)]

    def manifest(self, model: str, commit: str) -> Manifest | None:
        path = self._manifest_path(model, commit)
        try:
            seen = path.stat()
            state = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
            if (parsed := self._parsed.get(path)) is not None and parsed[0] == state:
                return parsed[1]
            manifest = Manifest.parse(read_regular(path), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadRecord(path=str(path), why=error.strerror or "it can't be read") from error
        if (manifest.model, manifest.commit) != (model, commit):
            raise BadRecord(path=str(path), why="it is of another model or commit")
        self._parsed[path] = (state, manifest)
        return manifest

    def seal(self, manifest: Manifest) -> None:
        write_atomically(self._manifest_path(manifest.model, manifest.commit), manifest.dump())

    # --- model_info.json, in the seed's format

    def model_info(self, manifests: Iterable[Manifest]) -> bytes:
        """{"<file name>": {"path", "sha256", "size_bytes", …}} of what is held. Derived output; nothing here ever trusts it.

        Where two models have files of one name, the later one is listed under its path below the models folder.
        """
        info: dict[str, dict[str, object]] = {}
        below = len(str(self.root)) + 1
        for manifest in manifests:
            # As text: with a thousand models this is done ten thousand times in a round. A manifest's names were checked when it was read.
            folder = str(self.config.folder(manifest.model))
            for entry in manifest.files:
                path = f"{folder}/{entry.path}"
                name = entry.path.rpartition("/")[2]
                info[name if name not in info else path[below:]] = {
                    "path": path,
                    "sha256": entry.sha256,
                    "size_bytes": entry.size_bytes,
                    "model": manifest.model,
                    "repo_id": manifest.repo_id,
                    "commit": manifest.commit,
                }
        return json.dumps(info, indent=2, ensure_ascii=False).encode() + b"\n"

    @property
    def model_info_path(self) -> Path:
        return self.root / "model_info.json"

    def model_info_holds(self, manifests: Iterable[Manifest]) -> bool:
        """Whether the file on disk says what the manifests say."""
        try:
            return read_regular(self.model_info_path) == self.model_info(manifests)
        except OSError:
            return False

    def write_model_info(self, manifests: Iterable[Manifest]) -> None:
        write_atomically(self.model_info_path, self.model_info(manifests))

    def strays(self, manifest: Manifest) -> list[str]:
        """Files in a folder that is this model's alone; in a shared one (dir = ".") other files are nobody's business."""
        folder = self.config.folder(manifest.model)
        if folder == self.root or self._models_below[folder] > 1 or not folder.is_dir():
            return []
        return files_not_in(folder, {entry.path for entry in manifest.files})

    @cached_property
    def _models_below(self) -> Counter[Path]:
        """How many models have their files in a folder or below it."""
        folders = [self.config.folder(name) for name in self.config.models]
        return Counter(above for folder in folders for above in (folder, *folder.parents))

    @property
    def drive(self) -> Path:
        return existing_parent(self.root)


def files_not_in(folder: Path, known: set[str]) -> list[str]:
    """Paths below *folder*, as posix text, that are not *known*; our own records and certificates are not counted."""
    found = []
    for base, folders, names in folder.walk() if hasattr(folder, "walk") else _walk(folder):
        folders[:] = [name for name in folders if name != ".steelyard"]
        for name in names:
            path = (base / name).relative_to(folder).as_posix()
            if path not in known and not name.endswith(".steelyard.json"):
                found.append(path)
    return sorted(found)


def _walk(folder: Path) -> Iterable[tuple[Path, list[str], list[str]]]:
    import os

    for base, folders, names in os.walk(folder):
        yield Path(base), folders, names
