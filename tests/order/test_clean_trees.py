"""clean on random trees: it never removes what must stay, follows no link, leaves no file system, and frees what it said."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.clean import clean
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.staging import partial_paths

DAY = 86400.0
TREES = int(os.environ.get("STEELYARD_TREES", "100"))
MODEL, REPO, COMMIT = "m", "o/m", "c" * 40

names = st.text("abcdef_-.", min_size=1, max_size=6).filter(lambda name: set(name) != {"."})
sizes = st.integers(0, 20_000)


@dataclass
class Tree:
    """A machine in a folder. *stays* are paths that must be there afterwards as they were, *goes* those that must not."""

    home: Path
    stays: dict[Path, bytes | str] = field(default_factory=dict)
    goes: set[Path] = field(default_factory=set)

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def ours(self) -> Path:
        return self.models / ".steelyard"

    @property
    def hub(self) -> Path:
        return self.home / "hf" / "hub"

    def put(self, path: Path, size: int, *, goes: bool) -> Path:
        if path.exists() or path.is_symlink() or any(one.is_symlink() or one.is_file() for one in path.parents):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        if goes:
            self.goes.add(path)
        else:
            self.stays[path] = path.read_bytes()
        return path

    def link(self, path: Path, target: Path) -> None:
        if not path.exists() and not path.is_symlink() and path.parent.is_dir():
            path.symlink_to(target)
            self.stays[path] = os.readlink(path)

    def check(self) -> None:
        for path, content in self.stays.items():
            if isinstance(content, str):
                assert os.readlink(path) == content, f"{path} went"
            else:
                assert path.read_bytes() == content, f"{path} went"
        left = [path for path in self.goes if path.exists()]
        assert left == []

    def used(self) -> int:
        """Bytes of all files below, those under several names once."""
        seen: dict[int, int] = {}
        for base, _, names in os.walk(self.home):
            for name in names:
                stat = os.lstat(os.path.join(base, name))
                if "history.sqlite" not in name and not base.endswith("locks"):
                    seen[stat.st_ino] = min(stat.st_size, stat.st_blocks * 512)
        return sum(seen.values())


def held(tree: Tree, number: int, size: int) -> tuple[LockedFile, FileEntry]:
    """A file that is current: in the store and in the hub cache."""
    content = os.urandom(size)
    final = tree.models / f"w{number}.pt"
    final.write_bytes(content)
    with LocalFile(final) as source:
        entry = FileEntry.of(final.name, digest_source(source, stop=threading.Event()))
    repo = tree.hub / "models--o--m"
    for path in (final, repo / "blobs" / entry.etag):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        tree.stays[path] = content
    link = repo / "snapshots" / COMMIT / f"w{number}.pt"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../blobs/{entry.etag}")
    tree.stays[link] = os.readlink(link)
    return LockedFile(entry.path, entry.size_bytes, sha256=entry.sha256), entry


PLACES = ("staging", "quarantine", "drill", "hub", "local", "outputs", "xet", "models", "incoming")
plants = st.lists(st.tuples(st.sampled_from(PLACES), names, sizes, st.booleans(), st.booleans()), max_size=14)
links = st.lists(st.tuples(st.sampled_from(PLACES), names, st.integers(0, 20)), max_size=5)
shared = st.lists(st.tuples(st.integers(0, 20), st.sampled_from(PLACES), names, st.booleans()), max_size=4)


def folder_of(tree: Tree, place: str) -> Path:
    return {
        "staging": tree.ours / "staging",
        "quarantine": tree.ours / "quarantine",
        "drill": tree.ours / "drill",
        "incoming": tree.ours / "incoming" / MODEL,
        "hub": tree.hub / "models--x--y" / "blobs",
        "local": tree.models / ".cache" / "huggingface" / "download",
        "outputs": tree.home / "outputs",
        "xet": tree.home / "hf" / "xet" / "host" / "chunk-cache",
        "models": tree.models,
    }[place]


def plant(tree: Tree, place: str, name: str, size: int, ours: bool, deep: bool) -> Path:
    """*ours*: something that clean is there for; else a file of somebody's own at the same place."""
    folder = folder_of(tree, place)
    if place == "staging":
        return tree.put(folder / (f"{name}.partial" if ours else f"{name}.txt"), size, goes=ours)
    if place == "quarantine":
        case = folder / f"{'case' if ours else 'kept'}-{name}"
        tree.put(case / "record.json", 10, goes=ours) if ours else None
        return tree.put(case / "bytes", size, goes=ours and (case / "record.json").exists())
    if place in {"drill", "incoming"}:
        return tree.put(folder / f"d{name}" / "in" / name, size, goes=True)
    if place == "hub":
        return tree.put(folder / (f"{name}.incomplete" if ours else f"{name}x"), size, goes=ours)
    if place == "local":
        return tree.put((folder / "sub" if deep else folder) / (f"{name}.incomplete" if ours else f"{name}.metadata"), size, goes=ours)
    if place == "outputs":
        top = folder / (f"old_{name}" if ours else f"new_{name}")
        return tree.put(top / name if deep else top, size, goes=ours)
    if place == "xet":
        return tree.put(folder / name, size + 1, goes=True) if ours else tree.put(folder.parent / "staging" / name, size, goes=False)
    return tree.put(folder / f"my-{name}", size, goes=False)


def build(home: Path, plants_: list[tuple[str, str, int, bool, bool]], links_: list[tuple[str, str, int]],
          shared_: list[tuple[int, str, str, bool]], files: list[int]) -> tuple[Tree, Site]:  # fmt: skip
    tree = Tree(home)
    config = home / "steelyard.toml"
    config.write_text(
        f'[store]\nmodels = "{tree.models}"\nhf_home = "{home}/hf"\noutputs = "{home}/outputs"\n[models.{MODEL}]\nrepo_id = "{REPO}"\ndir = "."\n'
        '[clean]\noutputs = ["old_*"]\nxet_cache = "0 B"\n'
    )
    site = Site.open(config)
    tree.ours.mkdir(parents=True)
    both = [held(tree, number, size) for number, size in enumerate(files)]
    site.agree(MODEL, LockedModel(REPO, "main", COMMIT, tuple(locked for locked, _ in both)))
    site.store.seal(Manifest(MODEL, REPO, "main", COMMIT, tuple(entry for _, entry in both)))
    for path in (site.lock_path, config, tree.ours / "manifests" / MODEL / f"{COMMIT}.json"):
        tree.stays[path] = path.read_bytes()
    for _, entry in both[:1]:  # a download that would go on
        for path in partial_paths(tree.ours / "staging", entry.path, entry.sha256):
            tree.put(path, 100, goes=False)
    made = [plant(tree, *one) for one in plants_]
    for index, place, name, goes in shared_:  # a second name for a planted or a current file's bytes
        sources = [path for path in [*made, *tree.stays] if path.is_file() and not path.is_symlink()]
        source, folder = sources[index % len(sources)], folder_of(tree, place)
        target = folder / (f"old_l{name}" if goes and place == "outputs" else f"keep-{name}")
        if place in {"outputs", "models"} and not target.exists() and not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            if goes and place == "outputs":
                tree.goes.add(target)
            else:
                tree.stays[target] = target.read_bytes()
    for place, name, index in links_:  # loops, links out of the tree, links to what is current
        folder = folder_of(tree, place)
        folder.mkdir(parents=True, exist_ok=True)
        targets = [home, folder, tree.models, tree.models / "w0.pt", home.parent / "away", *made]
        suffix = {"staging": ".partial", "hub": ".incomplete", "local": ".incomplete"}.get(place, "")
        target = folder / f"{'old_' if place == 'outputs' else 'l'}{name}{suffix}"
        if place not in {"xet"}:
            tree.link(target, targets[index % len(targets)])
    return tree, site


@pytest.fixture
def shelter(tmp_path: Path) -> Iterator[Path]:
    """A file outside all trees that links lead to."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "precious").write_bytes(b"p" * 100)
    yield tmp_path
    assert (away / "precious").read_bytes() == b"p" * 100


def one_tree(folder: Path, plants_: list[tuple[str, str, int, bool, bool]], links_: list[tuple[str, str, int]],
             shared_: list[tuple[int, str, str, bool]], files: list[int]) -> None:  # fmt: skip
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    tree, site = build(home, plants_, links_, shared_, files)
    real = time.time
    time.time = lambda: real() + 100 * DAY
    try:
        told = clean(site)
        before = tree.used()
        tree_before = sorted(home.rglob("*"))
        assert {row.facts["action"] for row in told.rows} <= {"would-remove"}
        assert sorted(home.rglob("*")) == tree_before, "without apply nothing changes"
        done = clean(site, apply=True)
    finally:
        time.time = real
    assert done.errors == []
    tree.check()
    said = sum(row.facts["bytes"] for row in told.rows)
    freed = before - tree.used()
    assert abs(freed - said) <= max(0.01 * freed, 0), (freed, said)
    assert sorted(row.path for row in done.rows) == sorted(row.path for row in told.rows)


@settings(max_examples=TREES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=TREES <= 100)
@given(plants, links, shared, st.lists(st.integers(1, 9000), min_size=1, max_size=3))
def test_random_trees_keep_what_is_protected_and_free_what_was_said(shelter: Path, a, b, c, files) -> None:  # type: ignore[no-untyped-def]
    """STEELYARD_TREES=1000 for more of them."""
    one_tree(shelter, a, b, c, files)
