"""Apply prefect.yaml and what it can't say: the work pool and the automations. As often as you like; the second time changes nothing.

python -m deployments.apply [prefect.yaml]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.automations import apply_automations
from deployments.up import HOME, POOL, PREFECT_YAML

DEPLOY_S = 180.0


def make_pool() -> None:
    """The pool that this machine's worker polls. One that is there stays as its owner has set it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            wanted = WorkPoolCreate(
                name=POOL, type=ProcessWorker.type, base_job_template=template, description="Processes on this machine."
            )
            try:
                client.create_work_pool(wanted)
            except ObjectAlreadyExists:
                return


def deploy(prefect_yaml: Path) -> int:
    """`prefect deploy --all`: the tool that owns these deployments, so that a user may run it too."""
    environment = {**os.environ, "STEELYARD_HOME": os.environ.get("STEELYARD_HOME") or str(HOME)}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_yaml)]
    return subprocess.run(command, env=environment, check=False, timeout=DEPLOY_S, stdin=subprocess.DEVNULL).returncode


def main() -> int:
    make_pool()
    if code := deploy(Path(sys.argv[1]) if len(sys.argv) > 1 else PREFECT_YAML):
        return code
    with get_client(sync_client=True) as client:
        for name in apply_automations(client):
            sys.stdout.write(f"automation: {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
