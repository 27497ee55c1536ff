"""The status as files for others: a page for people, metrics for Prometheus."""

from __future__ import annotations

from pathlib import Path

from steelyard.errors import Refused
from steelyard.page.picture import gather
from steelyard.report import Report
from steelyard.site import Site


def publish_status(site: Site, report: Report, *, html: Path | None = None, metrics: Path | None = None) -> None:
    """Write what was asked for from one look, each file atomically; where they are goes into *report*."""
    picture = gather(site, report)
    with report.collecting():
        if html is not None:
            from steelyard.page.write import write_page

            report.extra["html"] = str(write_page(_place(html), picture))
    with report.collecting():
        if metrics is not None:
            from steelyard.metrics import write_metrics

            report.extra["metrics"] = str(write_metrics(_place(metrics), picture))


def _place(path: Path) -> Path:
    """Where to write; the rename would put a file in the place of a device or a pipe. :raises Refused:"""
    if path.exists() and not path.is_file():
        raise Refused(why=f"{path} is no regular file and was left as it is", hint="name a file, or one that is not there yet")
    return path.absolute()
