"""Whole machines to look at: any number of models, with months of proofs, drills, runs and samples behind them. Small real files, no network."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

from steelyard.copies.folder import FolderCopy, stat_of
from steelyard.file_systems import file_systems
from steelyard.lock import Lock, LockedFile, LockedModel, lock_path, write_lock
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source
from steelyard.site import Site
from steelyard.source import LocalFile

NAMES = ("mvdream", "stable-diffusion-2-1", "zero123-xl", "clip-vit-large", "dpt-hybrid", "sam-vit-h", "whisper-large-v3", "bge-m3")
LICENCES = ("openrail", "apache-2.0", "mit", "cc-by-nc-4.0", "other")


@dataclass
class Scene:
    """One machine below *home*. *verdicts*: (model, copy) -> a verdict that the last look found; *never_drilled*, *late*: models."""

    home: Path
    models: int = 1
    away: bool = False
    gone: frozenset[str] = frozenset()
    verdicts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    never_drilled: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    hostile: bool = False
    days: int = 58
    per_day_bytes: float = -2.1e9
    store: Path | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self._random = random.Random(7)
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> Path:
        return self.home / "steelyard.toml"

    @property
    def names(self) -> list[str]:
        return [NAMES[n] if n < len(NAMES) else f"{NAMES[n % len(NAMES)]}-{n // len(NAMES)}" for n in range(self.models)]

    def site(self) -> Site:
        return Site.open(self.config)

    def build(self) -> Scene:
        top = self.store or self.home
        text = f'[store]\nmodels = "{top}/models"\nhf_home = "{top}/hf"\noutputs = "{top}/outputs"\nmin_free = "1 MB"\n[fleet]\nhost = "workshop"\n'
        for name in self.names:
            text += f'[models.{name}]\nrepo_id = "{self._repo(name)}"\nmin_copies = 2\n'
        if not self.models:
            text += '[models.mvdream]\nrepo_id = "MVDream/MVDream"\n'
        point = f'"{self.home}/drive"' if self.away else "false"
        text += f'[replicas.usb]\nkind = "mount"\npath = "{self.home}/drive/copies"\nmount_point = {point}\n'
        text += '[replicas.s3]\nkind = "s3"\nbucket = "weights"\nendpoint_url = "https://s3.example.org"\n'
        self.config.write_text(text)
        site = self.site()
        locked, held = {}, []
        for number, name in enumerate(self.names):
            model, manifest = self._model(site, name, number)
            locked[name] = model
            held.append(manifest)
        write_lock(lock_path(self.config), Lock(locked))
        site.store.ours.mkdir(parents=True, exist_ok=True)
        for manifest in held:
            site.store.seal(manifest)
        site.history.event("scene", "", "", "ok")
        with sqlite3.connect(site.history.path) as db:
            db.executemany(f"insert into proofs values ({','.join('?' * 11)})", [row for one in held for row in self._looks(site, one)])
        db.close()
        self._past(site)
        for manifest in held:
            if manifest.model in self.gone:
                (self.home / "drive" / "copies" / manifest.model / manifest.commit / manifest.files[0].path).unlink()
        return self

    def _repo(self, name: str) -> str:
        return f"{name.split('-')[0].title()}/{name}"

    def _file(self, number: int) -> str:
        return "<script>alert(1)</script> & “x”.pt" if self.hostile and not number else "model.safetensors"

    def _model(self, site: Site, name: str, number: int) -> tuple[LockedModel, Manifest]:
        commit = f"{number + 1:08x}" * 5
        path = self._file(number)
        stored = site.config.folder(name) / path
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(f"{name} {number}".encode() * (200 + self._random.randrange(3000)))
        with LocalFile(stored) as source:
            entry = FileEntry.of(path, digest_source(source, stop=Event()), "")
        copy = self.home / "drive" / "copies" / name / commit / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(stored.read_bytes())
        manifest = Manifest(name, self._repo(name), "main", commit, (entry,))
        blob = site.hub_cache.path_of(manifest, path)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(stored.read_bytes())
        cached = site.config.store.hub_cache / f"models--{self._repo(name).replace('/', '--')}" / "snapshots" / commit
        (cached / path).parent.mkdir(parents=True, exist_ok=True)
        (cached / path).symlink_to(blob)
        (cached / "README.md").write_text(
            f"---\nlicense: {LICENCES[number % len(LICENCES)]}\nlicense_name: stability-community\n---\n# {name}\n"
        )
        files = (LockedFile(path, entry.size_bytes, sha256=entry.sha256),)
        return LockedModel(self._repo(name), "main", commit, files), manifest

    def _looks(self, site: Site, manifest: Manifest) -> Iterator[tuple[object, ...]]:
        """Rows of the history's looks, one fsync for all of them."""
        name, entry = manifest.model, manifest.files[0]
        old = 50 if name in self.late else 0
        ages = [day for day in range(self.days, old - 1, -1) if day % 7 == 0 or day < 14]
        for copy in ("store", "hub-cache", "usb", "s3"):
            place = site.copies[copy]
            stat = stat_of(place.path_of(manifest, entry.path).stat()) if isinstance(place, FolderCopy) else "etag"
            row = (copy, name, manifest.commit, entry.path)
            for day in ages:
                yield (self._at(day, 2.6), *row, "ok", "pieces", "", "[]", stat, entry.size_bytes)
            if verdict := self.verdicts.get((name, copy)):
                yield (self._at(0, 0.1), *row, verdict, "pieces", "", json.dumps([[0, entry.size_bytes]]), stat, entry.size_bytes)

    def _at(self, days: float, hours: float = 0.0) -> str:
        return (self.now - timedelta(days=days, hours=hours)).isoformat(timespec="microseconds")

    def _past(self, site: Site) -> None:
        rows: list[tuple[str, str, str, str, str, str]] = []

        def add(days: float, verb: str, model: str, copy: str, outcome: str, /, **facts: object) -> None:
            rows.append((self._at(days), verb, model, copy, outcome, json.dumps(facts)))

        noise = self._random
        for number, name in enumerate(self.names):
            commit = f"{number + 1:08x}" * 5
            for month in range(7, -1, -1) if name not in self.never_drilled else ():
                if name in self.late and month < 2:
                    continue
                failed = (number + month) % 11 == 9
                seconds = 40 + 20 * (number % 5) + noise.uniform(-6, 14)
                facts = {"commit": commit} if failed else {"commit": commit, "seconds": round(seconds, 1)}
                add(
                    month * 30 + 3,
                    "drill",
                    name,
                    "usb" if month % 2 == 0 and not self.away else "s3",
                    "failed" if failed else "ok",
                    **facts,
                )
            for copy in ("usb", "s3"):
                add(0.3, "backup", name, copy, "ok", commit=commit, bytes=0, seconds=1.2)
            add(0.5, "check-updates", name, "hub", "update-available" if number % 6 == 4 else "unchanged")
        for day in range(self.days, -1, -1):
            add(day + 0.1, "run", "", "", "failed" if day % 17 == 5 else "ok", verb="keep", exit_code=int(day % 17 == 5), seconds=190 + day)
            add(day + 0.4, "run", "", "", "ok", verb="check-updates", exit_code=0, seconds=2.3)
            if day % 7 == 2:
                add(day + 0.6, "run", "", "", "ok", verb="verify", exit_code=0, seconds=840.0)
        for one in file_systems(site):
            for step in range(self.days * 2, -1, -1):
                free = one.free_bytes - self.per_day_bytes * step / 2 + noise.gauss(0, 1.5e9) * (step > 0)
                facts = {"free": max(0, int(free)), "total": one.total_bytes, "inodes_free": one.inodes_free, "io_errors": 0}
                add(step / 2 + 0.01, "disk", one.point, "", "ok", **facts)
        with sqlite3.connect(site.history.path) as db:
            db.executemany("insert into events values (?,?,?,?,?,?)", sorted(rows))
        db.close()
