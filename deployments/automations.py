"""Automations as code: applied by name, as often as you like. Without a notification block they show in the UI's event feed only.

    STEELYARD_NOTIFY="slack-webhook/keepers" steelyard up

names a notification block that was made in the UI (or by `prefect block create`); what needs a person is then sent there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, DoNothing, SendNotification

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
LEAVES_PENDING = ENDS | {f"prefect.flow-run.{state}" for state in ("Running", "Cancelling", "Scheduled", "AwaitingRetry", "Late")}
MISSED_BEATS = 3
PENDING_BEATS = 5
TAKEN_UP_AGAIN = ["0", "1", "2"]
"""How often a run had begun when it crashed. A server that dies as it answers may have counted one start twice."""
_Labels = dict[str, str | list[str]]
OURS: _Labels = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.steelyard"}
OF_A_DEPLOYMENT: _Labels = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
EVERY_RUN: _Labels = {"prefect.resource.id": "prefect.flow-run.*"}


def beat_s() -> int:
    """Seconds between two heartbeats of a run, as its environment has them."""
    return int(os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") or 180)


def automations(notify: SendNotification | None = None, *, fleet: bool = False) -> Iterator[AutomationCore]:
    """All of them. *notify* is who hears of what needs a person; *fleet*: other machines can take up what one has left."""
    yield AutomationCore(
        name="steelyard: a run that stopped beating has crashed",
        description="A run whose machine died or lost power never says so. Three missed heartbeats end it, and its slot is free again.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            match=EVERY_RUN,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_BEATS * beat_s()),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message=f"No heartbeat for {MISSED_BEATS * beat_s() / 60:g} minutes: its machine or process is gone.",
            )
        ],
    )
    yield AutomationCore(
        name="steelyard: a run that never began is offered again",
        description="A worker that dies between taking a run and starting it leaves it pending, and its slot taken. Another one may have it.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Pending"},
            expect=LEAVES_PENDING,
            match=EVERY_RUN,
            match_related=[OF_A_DEPLOYMENT],
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=PENDING_BEATS * beat_s()),
        ),
        actions=[_again(f"The worker that took it never started it, for {PENDING_BEATS * beat_s() / 60:g} minutes.")],
    )
    if fleet:
        yield AutomationCore(
            name="steelyard: a run that crashed is taken up again",
            description="Its machine or process is gone; another worker of the pool goes on from what is on disk. Twice at most: then it is told.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Crashed"},
                match={**EVERY_RUN, "prefect.run-count": TAKEN_UP_AGAIN},
                match_related=[OURS, OF_A_DEPLOYMENT],
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[_again("It crashed, and is taken up again.")],
        )
    for name, what, events in (
        (
            "steelyard: a run failed",
            "Something is missing, corrupt, refused or unreachable: the run's message says what.",
            {"prefect.flow-run.Failed"},
        ),
        (
            "steelyard: a run crashed",
            "A run ended without saying how: killed, out of memory, or its machine died.",
            {"prefect.flow-run.Crashed"},
        ),
        ("steelyard: a run is late", "No worker took it: is `steelyard up` (or a worker of the pool) running?", {"prefect.flow-run.Late"}),
    ):
        yield AutomationCore(
            name=name,
            description=what,
            trigger=EventTrigger(
                expect=events,
                match=EVERY_RUN,
                match_related=OURS,
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=_tell(notify),
        )
    for event, what in (
        ("steelyard.found.corrupt", "A copy has bytes that are not what was recorded: see what repair would do."),
        ("steelyard.update.available", "Upstream has a new revision of a model: the migration note says what it means."),
        ("steelyard.copies.too-few", "A model has fewer verified copies than its min_copies."),
        ("steelyard.disk.nearly-full", "The store's drive has less free than min_free."),
        ("steelyard.drill.failed", "A model could not be brought back from a replica and loaded."),
    ):
        yield AutomationCore(
            name=f"steelyard: {event.removeprefix('steelyard.').replace('.', ' ')}",
            description=what,
            trigger=EventTrigger(
                expect={event},
                match={"prefect.resource.id": "steelyard.*"},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                # Once a day is enough for what lasts.
                within=timedelta(0),
            ),
            actions=_tell(notify),
        )


def _again(message: str) -> ChangeFlowRunState:
    # Two workers that then both run it are kept apart by the lock on disk.
    return ChangeFlowRunState(name="AwaitingRetry", state=StateType.SCHEDULED, force=False, message=message)


def _tell(notify: SendNotification | None) -> list[ActionTypes]:
    return [notify or DoNothing()]


def notification(client: SyncPrefectClient) -> SendNotification | None:
    """The action that STEELYARD_NOTIFY asks for, as "block-type/name". :raises ValueError: when there is no such block."""
    wanted = os.environ.get("STEELYARD_NOTIFY", "")
    if not wanted:
        return None
    kind, _, name = wanted.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False)
    except Exception as error:
        raise ValueError(f"STEELYARD_NOTIFY names {wanted}, and there is no such block: make it in the UI first") from error
    return SendNotification(
        block_document_id=block.id,
        subject="Steelyard: {{ automation.name }}",
        body="{{ flow_run.name }} {{ flow_run.state.name }} {{ flow_run.state.message }} {{ event.resource.name }} {{ flow_run|ui_url }}",
    )


def apply_automations(client: SyncPrefectClient, *, fleet: bool = False) -> list[str]:
    """Make or update each by its name and return the names. Those that a user switched off in the UI stay off; doubles go."""
    names = []
    for wanted in automations(notification(client), fleet=fleet):
        held = client.read_automations_by_name(wanted.name)
        if held:
            client.update_automation(held[0].id, wanted.model_copy(update={"enabled": held[0].enabled}))
            for double in held[1:]:
                client.delete_automation(double.id)
        else:
            client.create_automation(wanted)
        names.append(wanted.name)
    return names
