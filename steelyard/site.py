"""One machine's config opened: its lock, its store, its hub cache, its replicas, its Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.config import Config, ReplicaConfig, S3Config, config_path, load_config
from steelyard.copies.base import Copy
from steelyard.copies.folder import FolderCopy, below
from steelyard.errors import BadRecord, LockMismatch, UnknownCopy
from steelyard.history import History
from steelyard.hub import Hub
from steelyard.hubcache import HubCache
from steelyard.lock import Lock, LockedModel, lock_path, read_lock, write_lock
from steelyard.manifest import Manifest
from steelyard.runlock import locked
from steelyard.store import Store

if TYPE_CHECKING:
    from steelyard.line import Line


class _Made(Mapping[str, Copy]):
    """Copies by name, each made at its first use."""

    def __init__(self, makers: Mapping[str, Callable[[], Copy]]) -> None:
        self._makers = makers
        self._made: dict[str, Copy] = {}

    def __getitem__(self, name: str) -> Copy:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


RECORD_WAIT_S = 30.0
"""Records that all models share are written in milliseconds; who holds one longer is stuck."""


class Site:
    """Everything a verb works on. Opening it touches neither the network nor any drive."""

    def __init__(self, config: Config, path: Path) -> None:
        self.config = config
        self.path = path
        self.lock_path = lock_path(path)
        self._lock_read: tuple[tuple[int, int, int], Lock] | None = None
        self.store = Store(config)
        self.hub_cache = HubCache(config)
        self.hub = Hub(config.hub)
        self.history = History(config.store.ours / "history.sqlite")

    @classmethod
    def open(cls, config: Path | None = None) -> Site:
        """:raises ConfigMissing, ConfigBroken:"""
        return cls(load_config(config), config_path(config))

    # --- what was agreed on

    def lock(self) -> Lock:
        """The lock as it is on disk now; read again only where it was replaced."""
        try:
            seen = self.lock_path.stat()
            key = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        except OSError:
            return read_lock(self.lock_path)
        if self._lock_read is None or self._lock_read[0] != key:
            self._lock_read = (key, read_lock(self.lock_path))
        return self._lock_read[1]

    def locked_model(self, model: str) -> LockedModel | None:
        """What the lock holds of *model*. :raises LockMismatch: when the config has since been pointed at another repo."""
        held = self.lock().get(model)
        wanted = self.config.models[model]
        if held is not None and held.repo_id != wanted.repo_id:
            raise LockMismatch(model=model, why=f"the config asks for {wanted.repo_id}, {self.lock_path.name} holds {held.repo_id}")
        return held

    def agree(self, model: str, locked_model: LockedModel) -> None:
        # Read, changed and written in one go: two runs that each agree on a model of their own must not undo one another's line.
        with locked(self.store.ours / "locks", "the lock file", "agree", wait_s=RECORD_WAIT_S):
            write_lock(self.lock_path, self.lock().with_model(model, locked_model))

    def write_model_info(self) -> None:
        """model_info.json of everything that is held now."""
        with locked(self.store.ours / "locks", "model_info.json", "record", wait_s=RECORD_WAIT_S):
            self.store.write_model_info(self.held_manifests())

    def manifest(self, model: str, commit: str) -> Manifest:
        """The store's manifest of *model* at *commit*, or an empty one; never one that contradicts the lock.

        A damaged one counts as none: its files are then judged by the lock's digests and it is written anew.
        """
        held = self.lock().get(model)
        wanted = self.config.models[model]
        try:
            manifest = self.store.manifest(model, commit)
        except BadRecord:
            manifest = None
        if manifest is None:
            revision = held.revision if held else wanted.revision
            return Manifest(model, held.repo_id if held else wanted.repo_id, revision, commit, ())
        if held is not None and held.commit == commit:
            agreed = {file.path: file for file in held.files}
            files = tuple(e for e in manifest.files if (f := agreed.get(e.path)) and f.etag == e.etag and f.size_bytes == e.size_bytes)
            if len(files) != len(manifest.files):
                return Manifest(manifest.model, manifest.repo_id, manifest.revision, commit, files, manifest.created_at)
        return manifest

    def held_manifests(self) -> list[Manifest]:
        """What the store should hold, model by model, as far as it was ever proven."""
        return [self.manifest(name, held.commit) for name, held in self.lock().models.items() if name in self.config.models]

    # --- the copies

    @cached_property
    def replicas(self) -> Mapping[str, Copy]:
        """By name, each made when it is first asked for: a status has no need of an S3 client."""
        return _Made({name: partial(self._replica, name, settings) for name, settings in self.config.replicas.items()})

    def _replica(self, name: str, settings: ReplicaConfig) -> Copy:
        if isinstance(settings, S3Config):
            from steelyard.copies.s3 import S3Replica

            return S3Replica(name, settings, self.config.store.ours / "s3" / name)
        from steelyard.copies.marker import Shelf
        from steelyard.copies.mount import MountReplica

        return MountReplica(name, settings, Shelf(self.config.store.ours / "targets" / f"{name}.json"))

    @cached_property
    def copies(self) -> Mapping[str, Copy]:
        own: dict[str, Callable[[], Copy]] = {"store": lambda: self.store, "hub-cache": lambda: self.hub_cache}
        return _Made({**own, **{name: partial(self.replicas.__getitem__, name) for name in self.replicas}})

    def copy(self, name: str) -> Copy:
        """:raises UnknownCopy:"""
        if name not in self.copies:
            raise UnknownCopy(copy=name, known=", ".join([*self.copies, "all"]))
        return self.copies[name]

    def replica(self, name: str) -> Copy:
        """:raises UnknownCopy: also for the store and the hub cache, which are no replicas."""
        if name not in self.replicas:
            raise UnknownCopy(copy=name, known=", ".join(self.replicas) or "no replicas in the config")
        return self.replicas[name]

    @contextmanager
    def writing(self, copy: str, models: Sequence[str], verb: str) -> Iterator[None]:
        """Hold the locks of *models* in *copy*: one writer at a time. A drive's lock lies on the drive, so that it is one for all who mount it.

        :raises Busy: at once, naming the holder.
        """
        with ExitStack() as stack:
            ours = self._ours_of(copy, stack)
            for model in models:
                stack.enter_context(locked(ours / "locks", f"{copy} {model}", verb))
                if copy == "store" and (ours / "switch" / f"{model}.json").exists():
                    from steelyard.switch import recover

                    # Whoever writes to the store finds one whole revision current there, however the last update ended.
                    recover(self, model)
            yield

    def _ours_of(self, copy: str, stack: ExitStack) -> Path:
        """The folder of our records of *copy*. A drive's is reached through its open root: a drive that goes in this moment leaves no lock in the
        bare mount point.
        """
        replica = self.replicas.get(copy)
        if isinstance(replica, FolderCopy):
            root = stack.enter_context(replica.held())
            return below(root, replica.root, replica.ours)
        return getattr(replica, "ours", self.store.ours)

    def lines(self, model: LockedModel) -> list[Line]:
        """The ways to the model's bytes: the Hub first, then the mirrors, which never see the token."""
        from steelyard.line import Line

        settings = self.config.hub
        ends = [(self.hub.endpoint, True), *((one.rstrip("/"), False) for one in settings.mirrors)]
        return [
            Line(end, model.repo_id, model.commit, timeout_s=settings.timeout, connections=settings.connections, with_token=own)
            for end, own in ends
        ]
