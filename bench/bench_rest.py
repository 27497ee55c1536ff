"""The other races: restore, resume after a kill, repair of one byte, inspect, start-up.

    python -m bench rest --size 2GiB --rounds 3

Peers that are not installed fall out by name. Bytes are counted where bytes are the point: what a killed run had done must not be done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_backup import PROGRAM, drop, fill
from bench_download import make_file
from measure import COSTS, Cost, as_installed, flip_one_byte, run, seconds, seen

from steelyard.backup import backup
from steelyard.standins.weights import write_torch_zip

Rows = list[dict[str, Any]]
START_UP = "Python starts in 0.2 to 0.4 s before the work begins"


def race(
    what: str,
    ours: str,
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
    **facts: Any,
) -> Rows:
    """A B A B …; a row for each peer."""
    COSTS.clear()
    for _ in range(rounds):
        for name, work in contenders.items():
            before()
            seconds(work, name)

    def middle(name: str, of: Callable[[Cost], float]) -> float:
        return statistics.median(map(of, COSTS[name]))

    def peak(name: str) -> float | None:
        return seen(max(one.peak_mib for one in COSTS[name]))

    rows: Rows = []
    for peer in contenders:
        if peer == ours:
            continue
        rows.append(
            {
                "what": what,
                "ours": middle(ours, lambda one: one.wall_s),
                "peer_name": peer,
                "peer": middle(peer, lambda one: one.wall_s),
                "rounds": rounds,
                "ours_cpu_s": middle(ours, lambda one: one.cpu_s),
                "peer_cpu_s": middle(peer, lambda one: one.cpu_s),
                "ours_peak_mib": peak(ours),
                "peer_peak_mib": peak(peer),
                **facts,
            }
        )
    return rows


def there(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def restored(home: Path, size: int, rounds: int) -> Rows:
    """A lost model comes back from its replica, proven, cold."""
    site = fill(home, 1, size)
    assert backup(site).exit_code == 0
    target = home / "models" / "big"
    (replica,) = (home / "usb" / "big").iterdir()
    contenders: dict[str, Callable[[], object]] = {"steelyard": lambda: run(home, *PROGRAM, "restore", "big", "--here", "--json")}
    if there("rsync", "sha256sum"):

        def rsync() -> None:
            run(home, "rsync", "-a", f"{replica}/", f"{target}/")
            run(target, "sha256sum", "-c", "--quiet", str(replica / "SHA256SUMS"))

        contenders["rsync -a + sha256sum -c"] = rsync
    if there("restic"):
        env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(home / "restic")}
        run(home, "restic", "init", env=env)
        run(target, "restic", "backup", ".", env=env)
        contenders["restic restore --verify"] = lambda: run(
            home, "restic", "restore", "latest", "--verify", "--target", str(target), env=env
        )

    def lost() -> None:
        shutil.rmtree(target)
        target.mkdir()
        os.sync()
        drop(home / "usb")

    return race(f"restore {size / (1 << 30):g} GiB and prove it, cold", "steelyard", contenders, rounds, lost, because=START_UP)


def killed_at_half(folder: Path, size: int, *command: str, env: dict[str, str] | None = None) -> None:
    """SIGKILL the program when half of *size* bytes lie in *folder*."""
    child = subprocess.Popen(
        command, cwd=folder.parent, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 600
    while child.poll() is None and time.monotonic() < until:
        if sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) >= size // 2 and _past(folder, size // 2):
            break
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL) if child.poll() is None else None
    child.wait()


def _past(folder: Path, wanted: int) -> bool:
    """Whether a reserved file holds that much: by the records of our journal (24 bytes a block of up to 1 MiB or a piece), else by its size."""
    journals = list(folder.rglob("*.journal"))
    if not journals:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >= wanted
    done = 0
    for journal in journals:
        records = journal.read_bytes().partition(b"\n")[2]
        done += sum(int.from_bytes(records[at + 8 : at + 12], "little") for at in range(0, len(records) - 23, 24))
    return done >= wanted


def resumed(home: Path, size: int) -> Rows:
    """How many bytes a copy, and a download, does again after a SIGKILL at half."""
    rows: Rows = []
    fill(home, 1, size)
    usb, source = home / "usb", home / "models" / "big"
    usb.mkdir()
    killed_at_half(usb, size, *PROGRAM, "backup", "--here", "--json", "--config", str(home / "steelyard.toml"))
    told = json.loads(subprocess.run([*PROGRAM, "backup", "--here", "--json"], cwd=home, check=True, capture_output=True, text=True).stdout)
    ours = sum(row.get("bytes_written", 0) for row in told["results"])
    if there("rsync"):
        mirror = home / "mirror"
        mirror.mkdir()
        killed_at_half(mirror, size, "rsync", "-a", f"{source}/", f"{mirror}/")
        stats = subprocess.run(["rsync", "-a", "--stats", f"{source}/", f"{mirror}/"], check=True, capture_output=True, text=True).stdout
        moved = int(next(line for line in stats.splitlines() if line.startswith("Literal data")).split()[2].replace(",", ""))
        rows.append(
            {
                "what": "bytes copied after a kill at half",
                "ours": ours,
                "peer_name": "rsync -a",
                "peer": moved,
                "unit": "bytes",
                "rounds": 1,
            }
        )
    return rows + _resumed_download(home / "dl", size)


def _resumed_download(home: Path, size: int) -> Rows:
    from steelyard.standins.hub import LoopbackHub

    make_file(home / "repos" / "model.bin", size)
    program = Path(sys.executable).parent / "hf"
    with LoopbackHub() as hub:
        hub.add_revision("bench/large", {"model.bin": home / "repos" / "model.bin"})
        hub.rate_limit_bytes_per_s = 400 << 20
        config = home / "steelyard.toml"
        config.write_text(
            f'[store]\nmodels = "{home}/models"\nhf_home = "{home}/hf"\nmin_free = 0\nviews = "hardlink"\n'
            f'[hub]\nendpoint = "{hub.endpoint}"\n[models.large]\nrepo_id = "bench/large"\n'
        )
        ours = _again(hub, size, [*PROGRAM, "download", "--here", "--json", "--config", str(config)], None)
        if not program.exists():
            return []
        env = {**os.environ, "HF_HOME": str(home / "theirs"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        theirs = _again(hub, size, [str(program), "download", "bench/large", "model.bin"], env)
    what = "bytes fetched after a kill at half"
    return [{"what": what, "ours": ours, "peer_name": "hf download", "peer": theirs, "unit": "bytes", "rounds": 1}]


def _again(hub: Any, size: int, command: list[str], env: dict[str, str] | None) -> int:
    hub.reset_counters()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and hub.bytes_sent("cdn") < size // 2:
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    hub.reset_counters()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return int(hub.bytes_sent("cdn"))


def one_byte(home: Path, size: int, rounds: int) -> Rows:
    """One byte of the store is wrong, a good replica is there: seconds and bytes until it is whole and proven."""
    site = fill(home, 1, size)
    assert backup(site).exit_code == 0
    path = next((home / "models" / "big").rglob("*.bin"))
    replica = next((home / "usb" / "big").iterdir())

    def spoil() -> None:
        flip_one_byte(path, size // 2)

    contenders: dict[str, Callable[[], object]] = {"steelyard": lambda: run(home, *PROGRAM, "repair", "--here", "--json")}
    if there("rsync"):
        contenders["rsync -a --checksum"] = lambda: run(home, "rsync", "-a", "--checksum", f"{replica}/", f"{path.parents[1]}/")
    rows = race(f"repair of one byte of {size / (1 << 30):g} GiB", "steelyard", contenders, rounds, spoil, because=START_UP)
    spoil()
    told = json.loads(subprocess.run([*PROGRAM, "repair", "--here", "--json"], cwd=home, check=True, capture_output=True, text=True).stdout)
    moved = sum(row.get("bytes_moved", 0) for row in told["results"])
    if there("rsync"):
        spoil()
        command = ["rsync", "-a", "--checksum", "--stats", f"{replica}/", f"{path.parents[1]}/"]
        stats = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        theirs = int(next(line for line in stats.splitlines() if line.startswith("Literal data")).split()[2].replace(",", ""))
        rows.append(
            {
                "what": "repair of one byte: bytes moved",
                "ours": moved,
                "peer_name": "rsync -a --checksum",
                "peer": theirs,
                "unit": "bytes",
                "rounds": 1,
            }
        )
    return rows


def looked_into(home: Path, size: int, rounds: int) -> Rows:
    """What is inside a checkpoint: ours from its headers, in a process of its own; torch's by loading it."""
    path = home / "w.pt"
    count = max(2, size // (64 << 20))
    write_torch_zip(path, {f"l{number}.weight": ("float32", (4096, 4096), number) for number in range(count)})
    load = "import sys, torch; print(len(torch.load(sys.argv[1], weights_only=True, map_location='cpu'{})))"
    contenders: dict[str, Callable[[], object]] = {"steelyard": lambda: run(home, *PROGRAM, "inspect", str(path), "--json")}
    if (
        subprocess.run(
            [sys.executable, "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('torch'))"], check=False
        ).returncode
        == 0
    ):
        contenders["torch.load(mmap=True)"] = lambda: run(home, sys.executable, "-c", load.format(", mmap=True"), str(path))
        contenders["torch.load"] = lambda: run(home, sys.executable, "-c", load.format(""), str(path))
    contenders["python -m zipfile -t"] = lambda: run(home, sys.executable, "-m", "zipfile", "-t", str(path))
    return race(f"inspect {path.stat().st_size / (1 << 30):.2g} GiB", "steelyard", contenders, rounds)


def started(home: Path, rounds: int) -> Rows:
    """How long until the program says something."""
    fill(home, 1, 1 << 20)
    rounds = max(5, rounds)
    rows: Rows = []
    peers = {
        "hf --help": [str(Path(sys.executable).parent / "hf"), "--help"],
        "aws --version": ["aws", "--version"],
        "rclone version": ["rclone", "version"],
        "restic version": ["restic", "version"],
    }
    installed = {name: command for name, command in peers.items() if shutil.which(command[0])}
    for ours in ("--help", "status"):
        contenders: dict[str, Callable[[], object]] = {"steelyard": lambda ours=ours: run(home, *PROGRAM, ours)}  # type: ignore[misc]
        contenders |= {name: (lambda command=command: run(home, *command)) for name, command in installed.items()}  # type: ignore[misc]
        rows += race(f"start-up: steelyard {ours}", "steelyard", contenders, rounds, because="a program in Go has no interpreter to start")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    asked, _ = parser.parse_known_args()
    as_installed()
    logging.getLogger("steelyard").setLevel(logging.ERROR)
    size = int(asked.gib * (1 << 30)) >> 20 << 20
    rows: Rows = []
    work: dict[str, Callable[[Path], Rows]] = {
        "restore": lambda home: restored(home, size, asked.rounds),
        "resume": lambda home: resumed(home, size),
        "repair": lambda home: one_byte(home, size, asked.rounds),
        "inspect": lambda home: looked_into(home, size, asked.rounds),
        "start-up": lambda home: started(home, asked.rounds),
    }
    with tempfile.TemporaryDirectory(dir=asked.dir, prefix="steelyard-bench-") as folder:
        for name, measure in work.items():
            if asked.only and name not in asked.only:
                continue
            home = Path(folder) / name
            home.mkdir()
            found = measure(home)
            shutil.rmtree(home)
            for row in found:
                print(f"  {row['what']}: {row['ours']:.2f} beside {row['peer_name']} {row['peer']:.2f}", flush=True)
            rows += found
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
