"""That a verb ran, when, how long, and what came of it: what the calendar of the status page is drawn from."""

from __future__ import annotations

import time
from collections.abc import Callable

from steelyard.errors import SteelyardError
from steelyard.report import Report
from steelyard.samples import take_samples
from steelyard.site import Site

RUN = "run"
"""The verb under which runs stand in the history's events; the verb that ran is one of the facts."""


def remembered(site: Site, verb: str, work: Callable[[], Report]) -> Report:
    """*work*'s report; that it ran is kept in the history, and how full the disks were after it. A store that is not there gets no folder for it."""
    began = time.monotonic()
    code = 130
    try:
        report = work()
        code = report.exit_code
        return report
    except SteelyardError as error:
        code = error.exit_code
        raise
    finally:
        if site.history.path.parent.is_dir():
            seconds = round(time.monotonic() - began, 3)
            take_samples(site)
            site.history.event(RUN, "", "", "ok" if code == 0 else "failed", verb=verb, exit_code=code, seconds=seconds)
