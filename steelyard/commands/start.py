"""Commands that become another program: the upper floors, which nothing below imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steelyard.commands.base import COMMON, Asked, Common, Direct, app, become, passed_on


@app.command
def up(*, host: str | None = None, port: int | None = None, status_port: int | None = None, common: Common = COMMON) -> Asked:
    """Server, UI and schedules on this machine, until Ctrl-C. A second one says that one runs.

    Parameters
    ----------
    host
        Address to listen on; else PREFECT_SERVER_API_HOST, else 127.0.0.1.
    port
        Port; else PREFECT_SERVER_API_PORT, else 4200.
    status_port
        Port of the status page on the loopback; else the one after the UI's, else any that is free.
    """
    arguments = [
        *(["--host", host] if host else []),
        *(["--port", str(port)] if port is not None else []),
        *(["--status-port", str(status_port)] if status_port is not None else []),
        *passed_on(common),
    ]
    return Direct("up", lambda: become("deployments.up", arguments))


@app.command
def demo(*, keep: Path | None = None, hold: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON) -> Asked:
    """The whole job on embedded stand-ins: a Hub, an S3 server and a folder as the drive, all on the loopback.

    Parameters
    ----------
    keep
        Keep what the demo made in this folder, to look at.
    hold
        Keep the servers and the UI up at the end, until Ctrl-C.
    """
    arguments = [*(["--keep", str(keep)] if keep else []), *(["--hold"] if hold else []), *passed_on(common)]
    return Direct("demo", lambda: become("flows.demo", arguments))
