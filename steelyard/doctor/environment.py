"""Is this environment as pyproject.toml asks, and does torch load."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

from steelyard.doctor.row import row
from steelyard.report import Row

PINNED = ("prefect", "fastapi", "sqlalchemy")
"""Where a newer one breaks the older without a word: pyproject.toml has the reasons."""
TORCH_TIMEOUT_S = 60.0


def pins() -> Iterator[Row]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("steelyard") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield row("pins", "unknown", "steelyard is not installed here, so its requirements can't be read", "run: make setup")
        return
    for one in wanted:
        if one.name not in PINNED:
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield row(f"pin {one.name}", "failed", "it is not installed", "run: make setup")
            continue
        holds = one.specifier.contains(version, prereleases=True)
        why = f"{version}, as {one.specifier} asks" if holds else f"{version} is installed, {one.specifier} is needed"
        yield row(f"pin {one.name}", "ok" if holds else "failed", why, f"run: pip install '{one.name}{one.specifier}'")


def torch() -> Iterator[Row]:
    """In a process of its own: torch takes seconds and 200 MB, and a broken build may take its process with it."""
    if importlib.util.find_spec("torch") is None:
        yield row("torch", "unknown", "it is not installed: load and drill can't test weights", "run: pip install 'steelyard[torch]'")
        return
    look = "import torch; print(torch.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'cpu', sep='|')"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", look], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield row("torch", "failed", f"it is not loaded after {TORCH_TIMEOUT_S:.0f} s", "install it anew: make setup")
        return
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"its process ended with {done.returncode}")
        yield row("torch", "failed", f"it does not load: {last.strip()[:200]}", "install it anew: make setup")
        return
    version, _, device = done.stdout.strip().partition("|")
    yield row("torch", "ok", f"{version} on {device}")
