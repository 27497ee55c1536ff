"""A machine to download to: a config on a temporary folder, pointed at a stand-in Hub, with little patience."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard.download import download
from steelyard.report import Report
from steelyard.site import Site
from steelyard.standins.hub import LoopbackHub

REPO = "MVDream/MVDream"
FILE = "sd-v2.1-base-4view.pt"
MIB = 1 << 20
WEIGHTS = random.Random(4).randbytes(9 * MIB + 12_345)
OLD = random.Random(5).randbytes(3 * MIB + 7)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_site(
    root: Path,
    hub: LoopbackHub,
    *,
    repo_id: str = REPO,
    files: Sequence[str] | None = (FILE,),
    folder: str = ".",
    store: dict[str, Any] | None = None,
    **hub_settings: Any,
) -> Site:
    """A site whose config file lies in *root*; values as the config has them."""
    settings = {"endpoint": hub.endpoint, "timeout": 1.0, "patience": 1.2, **hub_settings}
    places = {"models": str(root / "models"), "hf_home": str(root / "hf"), "min_free": 0, **(store or {})}
    model: dict[str, Any] = {"repo_id": repo_id, "dir": folder}
    if files is not None:
        model["files"] = list(files)
    path = root / "steelyard.toml"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(_toml({"store": places, "hub": settings, "models.m": model}))
    return Site.open(path)


def _toml(tables: dict[str, dict[str, Any]]) -> str:
    import json

    # What JSON writes for text, numbers, lists of text and booleans is TOML too.
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()) for name, table in tables.items()
    )


def got(site: Site, report: Report, path: str = FILE) -> dict[str, Any]:
    """The JSON row of *path*."""
    (row,) = [row.as_json() for row in report.rows if row.file == path]
    return row


def codes(report: Report) -> list[str]:
    return [error.code for error in report.errors]


def left_behind(site: Site) -> list[str]:
    """Every file below the store that is not our own record: what a program that looks for weights could find."""
    root = site.store.root
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".steelyard" not in p.relative_to(root).parts)


def cached_blobs(site: Site) -> list[Path]:
    return sorted(path for path in site.hub_cache.root.glob("models--*/blobs/*") if path.is_file())


def run(site: Site, content: bytes = WEIGHTS, *, before: bytes | None = None) -> Report:
    """Download, and hold the outcome against the invariant: the right bytes under the final name, or an error and what was there before."""
    report = download(site)
    final = site.store.path_of_model("m", FILE)
    if report.ok:
        assert final.read_bytes() == content
        assert [path.read_bytes() for path in cached_blobs(site) if path.name == sha256(content)] == [content]
    else:
        assert report.errors, "a failure without a word"
        assert all(error.message and error.hint for error in report.errors)
        assert (final.read_bytes() if final.exists() else None) == before
        assert sha256(content) not in [path.name for path in cached_blobs(site)]
        assert [path for path in left_behind(site) if path not in {FILE, "model_info.json"}] == []
    return report
