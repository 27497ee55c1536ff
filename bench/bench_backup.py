"""Backup with its read-back proof beside rsync + sha256sum and beside the limit of the disk; a round with nothing to do over many files beside rsync.

    python bench/bench_backup.py --gib 4 --rounds 3 --dir /some/disk --json out/bench-backup.json

Contenders take turns (A B C A B C …), source and copy cold each time; medians. *verb* is the backup in process, *command* the whole program with
its start-up; where nothing is to be done it answers from the receipt of the one before, and *command, first* is without one. The limit is plain
dd: a cold read, a write with fsync, and a cold read of what was written, one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from measure import COSTS, as_installed, costs_as_json, run, seconds

from steelyard.backup import backup
from steelyard.lock import Lock, LockedFile, LockedModel, lock_path, write_lock
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source
from steelyard.site import Site
from steelyard.source import LocalFile

COMMIT = "c0ffee" + "0" * 34
STATE = "state"
"""Where the commands' receipts lie, in the bench's own folder."""
PROGRAM = [sys.executable, "-m", "steelyard"]


def make_files(folder: Path, count: int, size: int) -> None:
    """*count* files of *size* bytes that don't compress, a thousand a folder, no two alike."""
    noise = os.urandom(1 << 20)
    for number in range(count):
        path = folder / f"part-{number // 1000:03}" / f"{number:06}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            left = size
            while left:
                head = number.to_bytes(8, "big") + left.to_bytes(8, "big")
                left -= out.write((head + noise[16:])[: min(left, 1 << 20)])
            out.flush()
            os.fsync(out.fileno()) if size > 1 << 20 else None


def fill(home: Path, count: int, size: int) -> Site:
    """A store that holds one model, locked and with its manifest: as a download leaves it."""
    models = home / "models"
    make_files(models / "big", count, size)
    text = f'[store]\nmodels = "{models}"\nhf_home = "{home}/hf"\n[models.big]\nrepo_id = "bench/big"\n'
    text += f'[replicas.usb]\nkind = "mount"\npath = "{home}/usb"\nmount_point = false\n'
    config = home / "steelyard.toml"
    config.write_text(text)
    entries = []
    for path in sorted((models / "big").rglob("*.bin")):
        with LocalFile(path) as source:
            digests = digest_source(source, stop=threading.Event())
        entries.append(FileEntry.of(path.relative_to(models / "big").as_posix(), digests))
    files = tuple(LockedFile(entry.path, entry.size_bytes, sha256=entry.sha256) for entry in entries)
    write_lock(lock_path(config), Lock({"big": LockedModel("bench/big", "main", COMMIT, files)}))
    site = Site.open(config)
    site.store.seal(Manifest("big", "bench/big", "main", COMMIT, tuple(entries)))
    return site


def drop(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def settle(home: Path, target: Path) -> None:
    """The same start for each: no copy, a cold source, nothing left to write from the contender before."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    drop(home / "models")


def large(home: Path, size: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    fill(home, 1, size)
    source = home / "models" / "big"
    file = next(source.rglob("*.bin"))
    target = home / "usb"
    sums = home / "sums"
    digest = subprocess.run(["sha256sum", file.relative_to(source)], cwd=source, check=True, capture_output=True, text=True).stdout
    sums.write_text(digest)

    def verb() -> None:
        assert backup(Site.open(home / "steelyard.toml")).exit_code == 0

    def rsync() -> None:
        run(home, "rsync", "-a", f"{source}/", f"{target}/")
        run(target, "sha256sum", "-c", str(sums))

    def limit() -> None:
        target.mkdir()
        copy = target / "copy.bin"
        run(home, "dd", f"if={file}", "of=/dev/null", "bs=8M")
        run(home, "dd", f"if={file}", f"of={copy}", "bs=8M", "conv=fsync")
        drop(target)
        run(home, "dd", f"if={copy}", "of=/dev/null", "bs=8M")

    contenders: dict[str, Callable[[], object]] = {"verb": verb, "command": lambda: run(home, *PROGRAM, "backup", "--here", "--json")}
    if shutil.which("rsync"):
        contenders["rsync -a + sha256sum -c"] = rsync
    contenders["dd: read, write, read"] = limit
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in contenders.items():
            settle(home, target)
            took.setdefault(name, []).append(seconds(work, name))
    median = {name: statistics.median(times) for name, times in took.items()}
    ratios = {"over the dd limit (wanted: 1.25 or less)": median["verb"] / median["dd: read, write, read"]}
    if "rsync -a + sha256sum -c" in median:
        ratios["over rsync -a + sha256sum -c (wanted: 0.4 or less)"] = median["verb"] / median["rsync -a + sha256sum -c"]
    return took, ratios


def nothing_to_do(home: Path, count: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    site = fill(home, count, 4096)
    assert backup(site).exit_code == 0
    assert backup(site).exit_code == 0
    mirror = home / "mirror"
    source = home / "models" / "big"

    def command() -> None:
        run(home, *PROGRAM, "backup", "--here", "--json")

    def without_receipt() -> None:
        shutil.rmtree(home.parent / STATE, ignore_errors=True)
        command()

    contenders: dict[str, Callable[[], object]] = {
        "verb, fresh": lambda: backup(Site.open(home / "steelyard.toml")),
        "verb, again": lambda: backup(site),
        "command": command,
        "command, first": without_receipt,
    }
    command()
    if shutil.which("rsync"):
        run(home, "rsync", "-a", f"{source}/", f"{mirror}/")
        contenders["rsync -a"] = lambda: run(home, "rsync", "-a", f"{source}/", f"{mirror}/")
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in contenders.items():
            took.setdefault(name, []).append(seconds(work, name))
    median = {name: statistics.median(times) for name, times in took.items()}
    if "rsync -a" not in median:
        return took, {}
    return took, {
        f"{name} over rsync -a (wanted: 1 or less)": median[name] / median["rsync -a"] for name in contenders if name != "rsync -a"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", type=Path)
    asked, _ = parser.parse_known_args()
    as_installed()
    logging.getLogger("steelyard").setLevel(logging.ERROR)
    size = int(asked.gib * (1 << 30)) >> 20 << 20
    results: dict[str, object] = {"size_bytes": size, "files": asked.files}
    with tempfile.TemporaryDirectory(dir=asked.dir, prefix="steelyard-bench-") as folder:
        os.environ["XDG_STATE_HOME"] = str(Path(folder) / STATE)
        for title, work in (
            (f"copy and proof of {size / (1 << 30):g} GiB, cold", lambda home: large(home, size, asked.rounds)),
            (f"nothing to do, {asked.files:,} files of 4 KiB", lambda home: nothing_to_do(home, asked.files, max(5, asked.rounds))),
        ):
            home = Path(folder) / title[:4].strip()
            home.mkdir()
            took, ratios = work(home)
            shutil.rmtree(home)
            results[title] = {"seconds": took, "ratios": ratios, "costs": costs_as_json()}
            COSTS.clear()
            print(f"{title}: medians on {len(os.sched_getaffinity(0))} cores")
            for name, times in took.items():
                print(f"  {name:26} {statistics.median(times):8.3f} s   ({min(times):.3f} to {max(times):.3f})")
            for name, value in ratios.items():
                print(f"  {name}: {value:.2f}")
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
