"""What a run leaves in the UI: its report as a table and as text, what is held where, its tags, and events that automations hear.

A failure here is a warning, never a failed run.
"""

from __future__ import annotations

import logging
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from flows.events import tell_state
from steelyard.markdown import fenced
from steelyard.names import slug
from steelyard.report import Report, cells, columns, markdown, summary
from steelyard.site import Site
from steelyard.status import status
from steelyard.status_markdown import status_markdown

log = logging.getLogger("steelyard")

MOST_ROWS = 1000
MOST_NOTE_CHARACTERS = 200_000
"""An artifact is read by a person and kept for months; the whole is in the command's JSON."""
HELD = "held-models"
"""The one artifact that every run renews: what is held where. Its versions are the history."""


def keep_report(name: str, report: Report) -> bool:
    """The report as a table artifact with the flow's name as its key, and as Markdown beside it. False where Prefect would not have it."""
    headings = columns(report)
    # What is not well comes first: it is why someone looks.
    rows = sorted(report.rows, key=lambda row: row.exit_code == 0)[:MOST_ROWS]
    table = [dict(zip(headings, cells(row, headings), strict=True)) for row in rows] or [{"result": summary(report)}]
    short = Report(report.command, rows, report.errors[:50], seconds=report.seconds)
    try:
        create_table_artifact(table=table, key=slug(name), description=summary(report))
        create_markdown_artifact(markdown=markdown(short), key=f"{slug(name)}-report", description=summary(report))
    except Exception as error:  # noqa: BLE001 (whatever Prefect raises, the work is done)
        log.warning("the report could not be kept as an artifact: %s", type(error).__name__)
        return False
    return True


def keep_notes(report: Report) -> None:
    """The migration note of each model that has one, and how to approve its plan, under a key of its own: its versions are the model's history."""
    for row in report.rows:
        note, plan = row.facts.get("note"), row.facts.get("plan")
        if not note or not row.facts.get("upstream_commit"):
            continue
        try:
            lines = [Path(str(note)).read_text(encoding="utf-8")[:MOST_NOTE_CHARACTERS]]
            if plan:
                lines += ["## Its plan", "", f"Digest: `{plan}`", ""]
                lines += [
                    "Run the deployment *apply-update / approved* with this model and this digest: just this is taken, and nothing else.",
                    "",
                ]
                lines += fenced(Path(str(row.facts["plan_path"])).read_text(encoding="utf-8"), "json", most_lines=200)
            create_markdown_artifact(
                markdown="\n".join(lines),
                key=f"update-{slug(row.model)}",
                description=f"{row.model}: {row.outcome}, plan {str(plan)[:19]}…",
            )
        except Exception as error:  # noqa: BLE001
            log.warning("the note could not be kept as an artifact: %s", type(error).__name__)


def keep_state(site: Site) -> None:
    """What is held where, after this run; and an event for each thing that is not as the config wants it."""
    try:
        report = status(site)
        create_markdown_artifact(markdown=status_markdown(report), key=HELD, description="What is held where, and when it was last proven")
        tell_state(site, report)
    except Exception as error:  # noqa: BLE001
        log.warning("what is held could not be kept as an artifact: %s", type(error).__name__)


def tag_run(context: FlowRunContext, wanted: set[str]) -> None:
    """Add the verb, the models and the replicas to the run's tags, however it was started."""
    run = context.flow_run
    if run is None or wanted <= set(run.tags):
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=sorted({*run.tags, *wanted}))
    except Exception as error:  # noqa: BLE001
        log.warning("the run could not be tagged: %s", type(error).__name__)
