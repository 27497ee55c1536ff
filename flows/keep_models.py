"""keep-models: the nightly round. Verify every copy, mend or report what is bad, back up, ask the Hub what is new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter
from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.backup import backup
from steelyard.cli import COMMON, Asked, Common, app
from steelyard.repair import repair
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.steps import Run
from steelyard.updates import check_updates
from steelyard.verbs import Call
from steelyard.verify import verify
from tasks.runner import run_as_task

log = logging.getLogger("steelyard")

Repair = Literal["report", "auto"]
MENDABLE = {"corrupt", "missing", "unreadable"}


class KeepModels(Options):
    """Which models to look after tonight."""

    models: Models = ()
    repair: Annotated[
        Repair,
        Field(description="report: only say what is bad. auto: mend it from any copy that proves good; the bad bytes go to quarantine."),
    ] = "report"

    @property
    def title(self) -> str:
        return which(self.models)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("keep-models", "keep"))
def keep_models(options: KeepModels = KeepModels()) -> State[Report] | Report:
    """The nightly round: verify every copy, mend or report what is bad, back up, ask the Hub what is new."""
    return perform("keep", options, lambda site: keep(site, options.models, mend=options.repair, run=run_as_task))


def keep(site: Site, models: Sequence[str], *, mend: Repair, run: Run) -> Report:
    """One round over *models* (none: all). What was bad and is mended counts as well; a drive that is absent is skipped."""
    report = Report("keep")
    verified = _stage(report, "verify", verify(site, models, copy="all", run=run))
    bad = sorted({(row.model, row.copy) for row in verified if row.exit_code and row.outcome in MENDABLE})
    if bad and mend == "auto":
        mended: set[tuple[str, str]] = set()
        for model, copy in bad:
            if copy in site.replicas and _never_there(verified, model, copy):
                continue  # the backup below brings it
            rows = _stage(report, "repair", repair(site, [model], copy=copy, run=run))
            if rows and not any(row.exit_code for row in rows):
                mended.add((model, copy))
        report.rows = [replace(row, exit_code=0) if (row.model, row.copy) in mended else row for row in report.rows]
    elif bad:
        log.warning("%s; run: steelyard repair --copy all, or set repair to auto", ", ".join(f"{model} in {copy}" for model, copy in bad))
    carried = _stage(report, "backup", backup(site, models, run=run))
    brought = {(row.model, row.copy) for row in carried if not row.exit_code and row.outcome in {"copied", "resumed"}}
    # A snapshot that was not there yet when we looked is there now.
    report.rows = [
        replace(row, exit_code=0) if row.outcome in {"missing", "stale"} and (row.model, row.copy) in brought else row
        for row in report.rows
    ]
    _stage(report, "check-updates", check_updates(site, models, run=run))
    return report.close()


def _never_there(rows: Sequence[Row], model: str, copy: str) -> bool:
    return all(row.outcome == "missing" for row in rows if (row.model, row.copy) == (model, copy))


def _stage(report: Report, verb: str, done: Report) -> list[Row]:
    """Take over the rows and errors of one stage; later stages run whatever came of it."""
    rows = [replace(row, facts={"verb": verb, **row.facts}) for row in done.rows]
    report.rows += rows
    report.errors += done.errors
    return rows


def _command(*models: str, repair: Repair = "report", common: Annotated[Common, Parameter(name="*")] = COMMON) -> Asked:
    """The nightly round, by hand: verify every copy, mend or report what is bad, back up, ask the Hub what is new.

    Parameters
    ----------
    repair
        report: only say what is bad. auto: mend it from any copy that proves good.
    """
    return Call("keep", common.config, {"models": models, "repair": repair})


if __name__ == "__main__":
    app.command(_command, name="keep")
    by_hand("keep")
