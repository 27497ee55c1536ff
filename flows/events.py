"""The news of a run as events, which automations hear: each once for the same thing. A failure here is a warning, never a failed run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import Event, RelatedResource, Resource

from steelyard.names import slug
from steelyard.news import RUN_FAILED, News, news_of, news_of_state
from steelyard.report import Report
from steelyard.site import Site

log = logging.getLogger("steelyard")

EVENTS_AT_ONCE = 50


def tell(site: Site | None, report: Report, scope: str = "") -> None:
    """An event for each outcome that someone may want to hear of; without a site nobody knows what was told before."""
    _tell(site, news_of(report, scope))


def tell_state(site: Site, report: Report) -> None:
    """An event for each thing that is not as the config wants it. *report* is status's."""
    _tell(site, news_of_state(report))


def tell_crash(command: str, scope: str, error: BaseException) -> None:
    """An event for a fault of ours: the run's own log has the traceback."""
    _tell(None, [News(RUN_FAILED, f"{command} {scope}", type(error).__name__, f"{command} failed: {type(error).__name__}")])


def _tell(site: Site | None, news: Sequence[News]) -> None:
    if site is not None:
        site.history.forget_ended([(one.event, one.subject) for one in news if not one.key])
    fresh = [one for one in news if one.key and (site is None or site.history.tell_once(one.event, one.subject, one.key))]
    for at in range(0, len(fresh), EVENTS_AT_ONCE):
        some = fresh[at : at + EVENTS_AT_ONCE]
        try:
            _send([_event(one) for one in some])
        except Exception as error:  # noqa: BLE001 (whatever Prefect raises, the work is done)
            log.warning("events could not be sent: %s", type(error).__name__)
            if site is not None:
                for one in some:
                    site.history.forget_told(one.event, one.subject, one.key)


def _event(one: News) -> Event:
    resource = f"steelyard.model.{slug(one.model)}" if one.model else f"steelyard.{slug(one.subject)}"
    about = {"prefect.resource.id": resource, "prefect.resource.name": one.told[:500]}
    context = FlowRunContext.get()
    related = []
    if context is not None and context.flow_run is not None:
        run = {"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}", "prefect.resource.name": context.flow_run.name}
        related.append(RelatedResource({**run, "prefect.resource.role": "flow-run"}))
    return Event(event=one.event, resource=Resource(about), related=related)


def _send(events: Sequence[Event]) -> None:
    """Hand events over and wait for the server's word, with its client's retries: a server on SQLite says 503 while another run writes.

    Not by emit_event(): that leaves it to a thread which loses what it can't get rid of, and an event is an alarm. :raises: when it stays away.
    """
    with get_client(sync_client=True) as client:
        content = [one.model_dump(mode="json") for one in events]
        client.request("POST", "/events", json=content).raise_for_status()
