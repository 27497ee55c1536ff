"""Commands that only look, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steelyard.commands.base import COMMON, Asked, Common, Direct, app
from steelyard.errors import UsageError
from steelyard.report import Report
from steelyard.terminal import show_report
from steelyard.verbs import Call


@app.command(name="inspect")
def inspect_command(
    *sources: Annotated[str, Parameter(required=True)],
    fits: str | None = None,
    tensors: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """A weights file by path, hf://repo_id[@revision]/path or s3://bucket/key, without loading it; two sources: their difference.

    Parameters
    ----------
    fits
        A model of the config: would its program's strict load_state_dict take this file? Its allowance counts too.
    tensors
        List every tensor.
    """

    def make() -> Report:
        from steelyard.errors import ConfigMissing
        from steelyard.inspecting import inspect_sources
        from steelyard.site import Site

        try:
            site = Site.open(common.config)
        except ConfigMissing:
            if common.config is not None:
                raise
            site = None
        return inspect_sources(sources, site, model=fits)

    def show(report: Report) -> None:
        show_report(report)
        if tensors:
            from steelyard.inspecting import show_tensors

            show_tensors(report)

    return Direct("inspect", make, show)


@app.command
def status(
    *,
    fleet: Annotated[bool, Parameter(negative="")] = False,
    publish: Annotated[bool, Parameter(negative="")] = False,
    html: Path | None = None,
    metrics: Path | None = None,
    common: Common = COMMON,
) -> Asked:
    """What is held where, how it is, and how full the disk is; reads no weights and asks no network.

    Parameters
    ----------
    fleet
        Every machine, by the inventories that the nightly rounds leave in the replicas.
    publish
        Leave this machine's inventory there first; the nightly round does it by itself.
    html
        Write it to this file as one self-contained page, with disks, drills and runs.
    metrics
        Write it to this file for Prometheus (a textfile of node_exporter).
    """
    if (fleet or publish) and (html is not None or metrics is not None):
        raise UsageError(why="--html and --metrics are of this machine alone", hint="leave --fleet and --publish away")
    if fleet or publish:
        return Direct("status", lambda: _fleet(common, publish), _show_fleet)

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.status import status as look

        site = Site.open(common.config)
        report = look(site)
        if html is not None or metrics is not None:
            from steelyard.publishing import publish_status

            publish_status(site, report, html=html, metrics=metrics)
        return report

    def show(report: Report) -> None:
        from steelyard.status_view import show_status

        show_status(report)

    return Direct("status", make, show)


def _fleet(common: Common, publish: bool) -> Report:
    from steelyard.fleet import fleet
    from steelyard.site import Site

    return fleet(Site.open(common.config), publish_first=publish)


def _show_fleet(report: Report) -> None:
    from steelyard.fleet_view import show_fleet

    show_fleet(report)


@app.command
def doctor(*, common: Common = COMMON) -> Asked:
    """What is wrong with this machine's set-up, and the fix for each."""

    def make() -> Report:
        from steelyard.doctor import doctor as look

        return look(common.config)

    return Direct("doctor", make)


@app.command(name="disk-watch")
def disk_watch(*, common: Common = COMMON) -> Asked:
    """How full each disk is, what is whose, when it runs out, and whether it tells of errors. Exit code 1 where one is at its error level."""
    return Call("disk-watch", common.config, {})
