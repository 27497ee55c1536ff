"""keep-models: the nightly round. Verify every copy, mend or report what is bad, back up, ask the Hub what is new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from cyclopts import Parameter
from prefect import State, flow
from pydantic import Field

from flows.engine import by_hand, perform
from flows.named import named
from flows.options import Models, Options, which
from steelyard.backup import backup
from steelyard.commands import COMMON, Asked, Common, app
from steelyard.errors import SteelyardError
from steelyard.inventory import publish
from steelyard.repair import repair
from steelyard.report import Report, Row
from steelyard.site import Site
from steelyard.steps import Run
from steelyard.update import update
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
    hub_away_days: Annotated[
        float,
        Field(
            title="Days the Hub may be away",
            ge=0,
            le=365,
            description="The round fails for a Hub that can't be reached only once it has been away this long; until then it warns. "
            "0: at once.",
        ),
    ] = 0

    @property
    def title(self) -> str:
        return which(self.models)

    @property
    def tags(self) -> tuple[str, ...]:
        return self.models


@flow(**named("keep-models", "keep"))
def keep_models(options: KeepModels = KeepModels()) -> State[Report] | Report:
    """The nightly round: verify every copy, mend or report what is bad, back up, ask the Hub what is new."""
    return perform(
        "keep", options, lambda site: keep(site, options.models, mend=options.repair, hub_away_days=options.hub_away_days, run=run_as_task)
    )


def keep(site: Site, models: Sequence[str], *, mend: Repair, hub_away_days: float = 0, run: Run) -> Report:
    """One round over *models* (none: all). What was bad and is mended counts as well; a drive that is absent is skipped.

    So is a Hub that can't be reached, until it has been away for *hub_away_days*: nothing held is worse for it.
    """
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
    for row in _stage(report, "check-updates", check_updates(site, models, run=run)):
        if row.facts.get("policy") == "auto" and row.outcome == "update-available" and not row.facts.get("not_taken"):
            _take(site, report, row, run)
    report.rows = [_forgiven(row, hub_away_days) for row in report.rows]
    if site.config.fleet.publish and site.replicas:
        try:
            report.extra["inventory"] = run(publish, site)
        except SteelyardError as error:
            if error.exit_code == 130:
                raise
            log.warning("this machine's inventory could not be made: %s", error)
    return report.close()


def _take(site: Site, report: Report, row: Row, run: Run) -> None:
    """Take an update that its model's policy leaves to us: just what was looked at, and only if it proves drop-in; then to the replicas."""
    log.info("%s: its policy is auto and nothing speaks against %s: taking it", row.model, str(row.facts["upstream_commit"])[:8])
    taken = _stage(report, "update", update(site, row.model, plan=str(row.facts["plan"]), only_drop_in=True, run=run))
    if taken:
        _stage(report, "backup", backup(site, [row.model], run=run))


def _forgiven(row: Row, days: float) -> Row:
    """A row of check-updates that only says that the Hub is away, and not for longer than *days*, is a warning."""
    since = row.facts.get("since")
    if not days or row.outcome != "unreachable" or not isinstance(since, str):
        return row
    away_days = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() / 86400
    if away_days > days:
        return row
    log.warning("%s: the Hub can't be reached since %s; the round fails for it after %g days", row.model, since[:16], days)
    return replace(row, exit_code=0, facts={**row.facts, "tolerated": True})


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
