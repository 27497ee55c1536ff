"""Config and lock of a fleet from one place: a git clone that is brought up to date, or a bucket. Done by every worker before each run.

    STEELYARD_CATALOGUE=/srv/catalogue                  a clone; STEELYARD_CONFIG lies in it, and git pull --ff-only is all that happens
    STEELYARD_CATALOGUE=s3://weights/catalogue          steelyard.toml and steelyard.lock are copied beside STEELYARD_CONFIG

What can't be had or is broken is a warning: the run then goes by what is here. The lock is the root of trust: whoever may write it there
decides what every machine accepts, so let reviews guard the branch, and the bucket's policy the key.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from steelyard.config import S3Config, config_path, load_config
from steelyard.disk import write_atomically
from steelyard.errors import SteelyardError
from steelyard.lock import lock_path, read_lock

log = logging.getLogger("steelyard")

GIT_S = 60.0


def bring() -> dict[str, str]:
    """A pull step of Prefect's: bring config and lock up to date. What became of it, for the run's log; never a reason to fail."""
    where = os.environ.get("STEELYARD_CATALOGUE", "")
    if not where:
        return {"catalogue": "none"}
    try:
        became = _from_bucket(where) if where.startswith("s3://") else _from_git(Path(where))
    except (SteelyardError, OSError, ValueError, subprocess.SubprocessError) as error:
        # The text of a git error may hold an address with a token.
        became = error.message if isinstance(error, SteelyardError) else type(error).__name__
        log.warning("the catalogue could not be brought up to date (%s); going by what is here", became)
    return {"catalogue": became}


def _from_git(clone: Path) -> str:
    command = ["git", "-C", str(clone), "pull", "--ff-only", "--quiet"]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=GIT_S, stdin=subprocess.DEVNULL)
    return "pulled"


def _from_bucket(url: str) -> str:
    """Both are read and judged before either is replaced. The endpoint is boto3's own (AWS_ENDPOINT_URL)."""
    from steelyard.copies.s3_client import Bucket
    from steelyard.copies.s3_objects import get

    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    bucket = Bucket("catalogue", S3Config(kind="s3", bucket=parts.netloc, endpoint_url=os.environ.get("AWS_ENDPOINT_URL")), patience_s=20)
    config = config_path()
    targets = {"steelyard.toml": config, "steelyard.lock": lock_path(config)}
    found: dict[Path, bytes] = {}
    for name, target in targets.items():
        data = get(bucket, f"{prefix}/{name}" if prefix else name)
        if data is None:
            raise ValueError(f"{url} has no {name}")
        found[target] = data
    with tempfile.TemporaryDirectory(prefix="steelyard-") as folder:
        for target, data in found.items():
            (Path(folder) / target.name).write_bytes(data)
        load_config(Path(folder) / config.name)
        read_lock(Path(folder) / lock_path(config).name)
    changed = [target for target, data in found.items() if not target.exists() or target.read_bytes() != data]
    for target in changed:
        if target.exists():
            write_atomically(target.with_name(f"{target.name}.before"), target.read_bytes())
        write_atomically(target, found[target])
    return "changed" if changed else "as it was"
