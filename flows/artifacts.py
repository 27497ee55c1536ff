"""What a run leaves in the UI: its report as a table and as text, what is held where, its tags, and events that automations hear.

A failure here is a warning, never a failed run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import Event, RelatedResource, Resource

from steelyard.names import slug
from steelyard.report import Report, cells, columns, markdown, summary
from steelyard.site import Site
from steelyard.status import disk_line, status

log = logging.getLogger("steelyard")

MOST_ROWS = 1000
"""An artifact is read by a person and kept for months; the whole is in the command's JSON."""
EVENTS_AT_ONCE = 50
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


def keep_state(site: Site) -> None:
    """What is held where, after this run; and an event for each thing that is not as the config wants it."""
    try:
        report = status(site)
        lines = [f"# What is held where\n\n{disk_line(report)}\n", markdown(report).partition("\n")[2]]
        create_markdown_artifact(markdown="\n".join(lines), key=HELD, description="What is held where, and when it was last proven")
        events: list[Event] = []
        store = report.extra["store"]
        if store["free_bytes"] < store["min_free_bytes"]:
            events.append(_event("steelyard.disk.nearly-full", f"steelyard.store.{slug(str(store['models']))}", disk_line(report)))
        for model in report.extra["models"]:
            if model["commit"] and model["verified_copies"] < model["min_copies"]:
                told = f"{model['model']}: {model['verified_copies']} verified copies, {model['min_copies']} are wanted"
                events.append(_event("steelyard.copies.too-few", f"steelyard.model.{slug(model['model'])}", told))
        _send(events)
    except Exception as error:  # noqa: BLE001
        log.warning("what is held could not be kept as an artifact: %s", type(error).__name__)


def tell(report: Report) -> None:
    """An event for each outcome that someone may want to hear of."""
    events: list[Event] = []
    for row in report.rows:
        resource = f"steelyard.model.{slug(row.model)}"
        if row.outcome == "update-available":
            events.append(_event("steelyard.update.available", resource, f"{row.model}: {row.facts.get('why', '')}"))
        elif report.command == "drill" and row.exit_code:
            told = f"{row.model} from {row.copy}: {row.facts.get('why', row.outcome)}"
            events.append(_event("steelyard.drill.failed", resource, told))
        elif row.outcome in {"corrupt", "unreadable"}:
            events.append(_event("steelyard.found.corrupt", resource, f"{row.file} in {row.copy}: {row.facts.get('why', '')}"))
    try:
        _send(events)
    except Exception as error:  # noqa: BLE001
        log.warning("events could not be sent: %s", type(error).__name__)


def _event(event: str, resource: str, told: str) -> Event:
    about = {"prefect.resource.id": resource, "prefect.resource.name": told[:500]}
    context = FlowRunContext.get()
    related = []
    if context is not None and context.flow_run is not None:
        run = {"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}", "prefect.resource.name": context.flow_run.name}
        related.append(RelatedResource({**run, "prefect.resource.role": "flow-run"}))
    return Event(event=event, resource=Resource(about), related=related)


def _send(events: Sequence[Event]) -> None:
    """Hand events over and wait for the server's word, with its client's retries: a server on SQLite says 503 while another run writes.

    Not by emit_event(): that leaves it to a thread which loses what it can't get rid of, and an event is an alarm. :raises: when it stays away.
    """
    for at in range(0, len(events), EVENTS_AT_ONCE):
        with get_client(sync_client=True) as client:
            content = [one.model_dump(mode="json") for one in events[at : at + EVENTS_AT_ONCE]]
            client.request("POST", "/events", json=content).raise_for_status()


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
