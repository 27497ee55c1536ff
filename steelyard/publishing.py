"""The status as files for others: a page for people, metrics for Prometheus."""

from __future__ import annotations

from pathlib import Path

from steelyard.page.picture import gather
from steelyard.report import Report
from steelyard.site import Site


def publish_status(site: Site, report: Report, *, html: Path | None = None, metrics: Path | None = None) -> None:
    """Write what was asked for from one look, each file atomically; where they are goes into *report*."""
    picture = gather(site, report)
    with report.collecting():
        if html is not None:
            from steelyard.page.write import write_page

            report.extra["html"] = str(write_page(html.absolute(), picture))
    with report.collecting():
        if metrics is not None:
            from steelyard.metrics import write_metrics

            report.extra["metrics"] = str(write_metrics(metrics.absolute(), picture))
