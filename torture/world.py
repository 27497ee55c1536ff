"""The small world of the torture: a Hub with two revisions, a store, a hub cache, two drives of different file systems, a bucket; and what is right."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.standins.hub import LoopbackHub

PIECE_BYTES = 512 * 1024
MODEL, REPO = "alpha", "torture/alpha"
BUCKET = "torture"


def contents(seed: int, big_bytes: int) -> list[dict[str, bytes | None]]:
    """The files of the first revision, and what the second changes. Large and small, nested, empty, with a name that needs quoting."""
    rng = random.Random(seed)
    big = rng.randbytes(big_bytes)
    newer = bytearray(big)
    newer[PIECE_BYTES + 5 : PIECE_BYTES + 4000] = rng.randbytes(3995)
    return [
        {
            "big.dat": big,
            "more.dat": rng.randbytes(PIECE_BYTES * 2 + 12_345 + (1 << 20)),
            "sub/small one.json": rng.randbytes(700),
            "empty.txt": b"",
            "old.md": b"old words\n" * 20,
        },
        {"big.dat": bytes(newer), "sub/small one.json": rng.randbytes(900), "old.md": None, "new.md": b"new words\n" * 30},
    ]


@dataclass
class Drive:
    """An ext4 of its own in a file, mounted by a loop device (root only)."""

    image: Path
    point: Path
    loop: str = ""

    def make(self, size_mb: int = 96) -> None:
        self.point.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(size_mb << 20)
        _tool("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image))
        self.loop = _tool("losetup", "-f", "--show", str(self.image)).strip()
        self.plug()

    @property
    def is_plugged(self) -> bool:
        return any(line.split()[4] == str(self.point) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def plug(self) -> None:
        """Mounted and writable, whatever befell it."""
        if self.is_plugged:
            if "rw" not in next(
                line.split()[5]
                for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines())
                if line.split()[4] == str(self.point)
            ).split(","):
                _tool("mount", "-o", "remount,rw", str(self.point))
            return
        _tool("mount", "-t", "ext4", self.loop, str(self.point))

    def unplug(self) -> None:
        if self.is_plugged:
            _tool("umount", "-l", str(self.point))

    def end(self) -> None:
        while self.is_plugged:
            self.unplug()
        if self.loop:
            with suppress(RuntimeError):
                _tool("losetup", "-d", self.loop)
        self.image.unlink(missing_ok=True)


def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class World:
    """Everything lies below *root*, but for the drive's image and the Hub."""

    root: Path
    hub: LoopbackHub
    seed: int = 0
    big_bytes: int = PIECE_BYTES * 4 + 77_777
    drive: Drive | None = None
    s3_endpoint: str = ""
    s3_prefix: str = "t"
    revisions: list[dict[str, bytes]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        first, change = contents(self.seed, self.big_bytes)
        whole = {path: data for path, data in first.items() if data is not None}
        second = {path: data for path, data in {**first, **change}.items() if data is not None}
        self.revisions = [whole, second]
        self.commits = [self.hub.add_revision(REPO, first, lfs_threshold=100_000)]
        self._second: Mapping[str, bytes | Path | None] = dict(change)
        self.home.mkdir(parents=True, exist_ok=True)
        self.configure()

    def publish_second(self) -> str:
        """Upstream changes (once). The commit."""
        if len(self.commits) == 1:
            self.commits.append(self.hub.add_revision(REPO, self._second, lfs_threshold=100_000))
        return self.commits[1]

    def configure(self) -> None:
        drive = (
            f'[replicas.drive]\nkind = "mount"\npath = "{self.drive.point}/models"\nmount_point = "{self.drive.point}"\n'
            if self.drive
            else ""
        )
        s3 = (
            f'[replicas.s3]\nkind = "s3"\nbucket = "{BUCKET}"\nprefix = "{self.s3_prefix}"\nendpoint_url = "{self.s3_endpoint}"\nregion = "us-east-1"\n'
            if self.s3_endpoint
            else ""
        )
        self.config.write_text(
            f'[store]\nmodels = "{self.models}"\nhf_home = "{self.hf}"\nmin_free = "1 MB"\n'
            f'[hub]\nendpoint = "{self.hub.endpoint}"\ntimeout = 3\npatience = 2\n'
            f'[models.{MODEL}]\nrepo_id = "{REPO}"\n'
            f'[replicas.usb]\nkind = "mount"\npath = "{self.usb}"\nmount_point = false\n{drive}{s3}'
        )

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def config(self) -> Path:
        return self.home / "steelyard.toml"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def hf(self) -> Path:
        return self.home / "hf"

    @property
    def usb(self) -> Path:
        return self.home / "usb"

    @property
    def into(self) -> Path:
        return self.home / "into"

    @property
    def cache(self) -> Path:
        return self.hf / "hub" / f"models--{REPO.replace('/', '--')}"

    @property
    def replicas(self) -> dict[str, Path]:
        """The replicas that are folders."""
        return {"usb": self.usb} | ({"drive": self.drive.point / "models"} if self.drive else {})

    def right(self, commit: str, path: str) -> bytes | None:
        return self.revisions[self.commits.index(commit)].get(path) if commit in self.commits else None

    def locked_commit(self) -> str:
        """What is current, by the product's own reading of its lock; "" where nothing was agreed on."""
        from steelyard.lock import lock_path, read_lock

        held = read_lock(lock_path(self.config)).get(MODEL)
        return held.commit if held else ""

    # --- taken down and put back

    def keep(self, where: Path) -> None:
        """Take the whole state down into *where*."""
        _copy(self.home, where / "home")
        if self.drive:
            self.drive.plug()
            _copy(self.drive.point, where / "drive")

    def put_back(self, where: Path) -> None:
        _copy(where / "home", self.home)
        if self.drive:
            self.drive.plug()
            _copy(where / "drive", self.drive.point)


def _copy(source: Path, target: Path) -> None:
    """Make *target* what *source* is; times and hard links are kept, what is there already is written anew."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in target.iterdir():
        if entry.name == "lost+found":
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if any(source.iterdir()):
        subprocess.run(["cp", "-a", "--no-target-directory", str(source), str(target)], check=True, timeout=60, stdin=subprocess.DEVNULL)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def scratch_place(asked: Path | None) -> Path:
    """In memory where there is room: what is tested is the order of calls, not the disk."""
    if asked is not None:
        return asked
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 1 << 30:
        return shm
    import tempfile

    return Path(tempfile.gettempdir())
