"""Apply prefect.yaml and what it can't say: the work pool and the automations. As often as you like; the second time changes nothing.

python -m deployments.apply [prefect.yaml]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

from deployments.automations import apply_automations
from deployments.up import HOME, POOL, PREFECT_YAML

DEPLOY_S = 180.0
BUSY_WAITS_S = (2.0, 5.0, 10.0, 0.0)
"""A server on SQLite answers 503 while another writes; Prefect's own client has asked five times by then."""


def make_pool(name: str = POOL, kind: str = ProcessWorker.type, template: dict[str, Any] | None = None) -> None:
    """The pool that workers poll; *template* is its base job template where it is not of processes. One that is there stays as its owner has set it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            wanted = WorkPoolCreate(
                name=name,
                type=kind,
                base_job_template=template or ProcessWorker.get_default_base_job_template(),
                description="Processes on this machine." if name == POOL else f"Steelyard's runs on {name.removeprefix(f'{POOL}-')}.",
            )
            try:
                client.create_work_pool(wanted)
            except ObjectAlreadyExists:
                return


def deploy(prefect_yaml: Path) -> int:
    """`prefect deploy --all`: the tool that owns these deployments, so that a user may run it too."""
    environment = {**os.environ, "STEELYARD_HOME": os.environ.get("STEELYARD_HOME") or str(HOME)}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_yaml)]
    return subprocess.run(command, env=environment, cwd=HOME, check=False, timeout=DEPLOY_S, stdin=subprocess.DEVNULL).returncode


def apply_all(
    prefect_yaml: Path, pool: str = POOL, kind: str = ProcessWorker.type, template: dict[str, Any] | None = None, *, fleet: bool = False
) -> int:
    """Pool, deployments, automations. The exit code of `prefect deploy`. :raises PrefectHTTPStatusError: when the server stays busy."""
    make_pool(pool, kind, template)
    if code := deploy(prefect_yaml):
        return code
    for wait_s in BUSY_WAITS_S:
        try:
            with get_client(sync_client=True) as client:
                names = apply_automations(client, fleet=fleet)
            break
        except PrefectHTTPStatusError as error:
            if error.response.status_code < 500 or not wait_s:
                raise
            # Made by name: what is there already is not made twice.
            time.sleep(wait_s)
    sys.stdout.writelines(f"automation: {name}\n" for name in names)
    return 0


def main() -> int:
    return apply_all(Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else PREFECT_YAML)


if __name__ == "__main__":
    sys.exit(main())
