"""Files that only the Hub's own client can bring (Xet without a plain address): hf_hub_download in a child process, then our own proof.

The child is trusted with nothing but bytes: what it brings is digested here, and it is ended when it brings nothing for too long.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from steelyard.disk import errors_of, make_folder
from steelyard.errors import BadAnswer, OtherSide, Stopped, Unreachable
from steelyard.fetch import Fetched, is_right, wrong_bytes
from steelyard.line import Line
from steelyard.lock import LockedFile
from steelyard.manifest import FileEntry
from steelyard.pieces import digest_source
from steelyard.source import LocalFile
from steelyard.staging import partial_paths
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

LARGEST_PLAIN_BYTES = 50 * 1000**3
"""The Hub's CDN serves no larger object by plain HTTP (huggingface.co/docs/hub/storage-limits)."""
_CHILD = """
import json, sys
from huggingface_hub import hf_hub_download
print(json.dumps(hf_hub_download(**json.load(sys.stdin))))
"""


def only_by_library(error: OtherSide, line: Line, file: LockedFile) -> bool:
    """Whether *error*, at which our own transfer ended, is one that the Hub's own client may not meet."""
    return not isinstance(error, Unreachable) and (line.offers_xet(file) or file.size_bytes > LARGEST_PLAIN_BYTES)


def fetch_by_library(line: Line, file: LockedFile, staging: Path, *, patience_s: float) -> Fetched:
    """Bring *file* into its place in *staging* by hf_hub_download and prove it by the locked digest.

    Nothing is resumed but what the client itself keeps; that is what this way costs.
    :raises Corrupt, OtherSide, Stopped:
    """
    from huggingface_hub import constants

    scratch = make_folder(staging / f"library-{file.etag[:20]}")
    watch = current_watch()
    with watch.job(f"download {file.path} by huggingface_hub", file.size_bytes) as job:
        asked = {
            "repo_id": line.repo_id,
            "filename": file.path,
            "revision": line.commit,
            "endpoint": line.endpoint,
            "local_dir": str(scratch),
        }
        # The token reaches the child as it reached us, by the environment or the stored login, and never by the command line.
        env = {
            **os.environ,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(scratch / "home"),
            "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,  # else it would be looked for below that HF_HOME
        }
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
        )
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(asked).encode())
            child.stdin.close()
            child.stdin = None
            seen, moved_at = 0, time.monotonic()
            while child.poll() is None:
                if watch.stop.wait(0.2):
                    raise Stopped()
                now = sum(path.stat().st_blocks * 512 for path in scratch.rglob("*") if path.is_file())
                if now > seen:
                    watch.advance(job, min(now, file.size_bytes) - min(seen, file.size_bytes))
                    seen, moved_at = now, time.monotonic()
                elif time.monotonic() - moved_at > max(60.0, patience_s):
                    raise Unreachable(who=line.endpoint, why="huggingface_hub brought nothing for a while")
        finally:
            if child.poll() is None:
                child.kill()
            out, err = child.communicate()
        if child.returncode:
            told = (err.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
            raise BadAnswer(
                who=line.endpoint, why=f"huggingface_hub could not bring it either: {told[:200].split('?')[0]}", hint="try again later"
            )
        return _proven(Path(json.loads(out.decode().splitlines()[-1])), file, staging, scratch)


def _proven(brought: Path, file: LockedFile, staging: Path, scratch: Path) -> Fetched:
    with LocalFile(brought) as source:
        digests = digest_source(source, stop=current_watch().stop, git=not file.sha256)
        os.fsync(source.fileno())
    partial, _ = partial_paths(staging, file.path, file.etag)
    if is_right(file, digests):
        with errors_of(partial):
            os.replace(brought, partial)
    shutil.rmtree(scratch, ignore_errors=True)
    if not is_right(file, digests):
        raise wrong_bytes(file, digests.sha256)
    return Fetched(FileEntry.of(file.path, digests, file.etag), file.size_bytes, resumed=False, retries=0)
