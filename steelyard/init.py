"""init: write a commented starter config for MVDream."""

from __future__ import annotations

import os
from pathlib import Path

from steelyard.config import config_path
from steelyard.disk import make_folder, making
from steelyard.errors import Refused
from steelyard.report import Report, Row

STARTER = """\
# Steelyard: which weights are kept, and where. Any value can come from the environment: STEELYARD_STORE__MODELS and so on.

[store]
models   = "/mnt/datadrive_m2/dream-cad/models"    # where programs look for weights
hf_home  = "/mnt/datadrive_m2/.huggingface"        # HF_HOME; the hub cache is hf_home/hub
outputs  = "/mnt/datadrive_m2/dream-cad/outputs"
min_free = "15 GB"                                  # a download is refused below this; the plan's own need is added
views    = "copy"                                   # how store and hub cache share bytes: copy, reflink, hardlink, auto

[hub]
endpoint = "https://huggingface.co"                 # HF_ENDPOINT wins; the token comes from HF_TOKEN or `hf auth login`, never from here
mirrors  = []                                       # further endpoints that bytes, never digests, may come from

[models.mvdream]
repo_id  = "MVDream/MVDream"
revision = "main"
files    = ["sd-v2.1-base-4view.pt"]                # patterns allowed; leave it out to keep every file of the repo
dir      = "."                                      # below store.models; the model's name when left out
update   = "notify"                                 # who takes a new version: notify (you), approve (you, by its plan), auto (the nightly round)

# A drive that is plugged in now and then. Nothing is written unless it is mounted.
[replicas.usb]
kind        = "mount"
path        = "/mnt/backup/mvdream-models"
mount_point = "/mnt/backup"                         # must be a mount when we write; false for a plain folder
keep_last   = 3                                     # snapshots; the newest verified one never goes

# Any S3-compatible store; credentials by boto3's own chain (environment, ~/.aws, instance role).
# [replicas.s3]
# kind         = "s3"
# bucket       = "weights"
# prefix       = "mvdream-models"
# endpoint_url = "https://s3.example.org"
# bandwidth    = "5 MB/s"                             # and window = "22:00-06:00", proof_days, storage_class, object_lock_days: docs/s3.md
"""


def init(path: Path | None, given: Path | None = None) -> Report:
    """Write the starter config to *path* (a folder: steelyard.toml in it), else to where every command looks for it: *given* is --config.

    :raises Refused: when something is there already.
    """
    report = Report("init")
    target = path.expanduser() if path is not None else config_path(given)
    with making(target):
        if target.is_dir():
            target /= "steelyard.toml"
        make_folder(target.parent)
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise Refused(
                why=f"{target} is there already and was left as it is", hint=f"edit it, or name another path: steelyard init {target}.new"
            ) from error
        with open(fd, "w", encoding="utf-8") as out:
            out.write(STARTER)
    next_step = "edit its paths, then run: steelyard download"
    report.rows.append(Row(path=str(target), facts={"action": "written", "why": next_step}))
    return report.close()
