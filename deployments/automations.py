"""Automations as code: applied by name, as often as you like. Without a notification block they show in the UI's event feed only.

    STEELYARD_NOTIFY="slack-webhook/keepers, webhook/ops" steelyard up

names blocks that were made in the UI (or by `prefect block create`), as type/name: any notification block (slack-webhook, ms-teams-webhook,
sendgrid-email, custom-webhook …), or a webhook block, which is called with a JSON body. What needs a person is then sent to each of them.
The same thing is told once: the flows send an event for it once (steelyard/news.py), and the automations hear of nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, DoNothing, SendNotification

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
LEAVES_PENDING = ENDS | {f"prefect.flow-run.{state}" for state in ("Running", "Cancelling", "Scheduled", "AwaitingRetry", "Late")}
RUN_FAILED = "steelyard.run.failed"
TOLD = {
    RUN_FAILED: "Something was refused, unreachable or went wrong that no other event tells of: the run's message says what.",
    "steelyard.verify.failed": "A copy has bytes that are not what was recorded, or lacks a file: see what repair would do.",
    "steelyard.load.failed": "Weights that are held do not load.",
    "steelyard.drill.failed": "A model could not be brought back from a replica and loaded.",
    "steelyard.drill.slower": "A restore drill took at least twice as long as the last ones.",
    "steelyard.replica.overdue": "A drive had no good backup for longer than its max_age: plug it in.",
    "steelyard.copies.too-few": "A model has fewer verified copies than its min_copies.",
    "steelyard.disk.low": "A disk of ours is below its warning level, or will be full soon: see what may go with steelyard clean.",
    "steelyard.disk.nearly-full": "A disk of ours is below its error level, or the store's drive has less free than min_free.",
    "steelyard.disk.failing": "The kernel counts I/O errors, the drive says that it is failing, or the store fell to read-only.",
    "steelyard.update.available": "Upstream has a new revision of a model: the migration note says what it means.",
    "steelyard.update.applied": "A model was brought to a new revision; the old one is kept.",
    "steelyard.update.rolled-back": "A model was taken back to its earlier revision.",
    "steelyard.upstream.history-rewritten": "The commit that is held is no longer in the history of its branch: keep your copies.",
    "steelyard.upstream.scan-flagged": "The Hub's own scan calls a held model unsafe now.",
    "steelyard.upstream.renamed": "A repo has a new name: put it into the config before the old one is given to others.",
    "steelyard.upstream.access-lost": "The Hub no longer lets us read a model: token, terms or privacy.",
    "steelyard.upstream.gone": "A repo or its revision is no longer on the Hub: what is held is all there is.",
    "steelyard.upstream.stale": "The Hub has not answered for days: what is known of upstream is old.",
}
"""Our events that someone should hear of, each sent once for the same thing (see steelyard/news.py)."""
SUBJECT = "Steelyard: {{ automation.name }}"
BODY = "{{ event.resource.name }} {{ flow_run.name }} {{ flow_run.state.name }} {{ flow_run.state.message }} {{ flow_run|ui_url }}"
PAYLOAD = (
    '{"event": {{ event.event | tojson }}, "told": {{ event.resource.name | default("", true) | tojson }}, '
    '"automation": {{ automation.name | tojson }}, "run": {{ flow_run.name | default("", true) | tojson }}}'
)
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


def automations(notify: Sequence[ActionTypes] = (), *, fleet: bool = False) -> Iterator[AutomationCore]:
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
            actions=[*notify] or [DoNothing()],
        )
    for event, what in TOLD.items():
        yield AutomationCore(
            name=automation_name(event),
            description=what,
            trigger=EventTrigger(
                expect={event},
                match={"prefect.resource.id": "steelyard.*"},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[*notify] or [DoNothing()],
        )


def _again(message: str) -> ChangeFlowRunState:
    # Two workers that then both run it are kept apart by the lock on disk.
    return ChangeFlowRunState(name="AwaitingRetry", state=StateType.SCHEDULED, force=False, message=message)


def automation_name(event: str) -> str:
    return "steelyard: a run failed" if event == RUN_FAILED else f"steelyard: {event.removeprefix('steelyard.').replace('.', ' ')}"


def notifications(client: SyncPrefectClient) -> list[ActionTypes]:
    """The actions that STEELYARD_NOTIFY asks for, as "block-type/name", several with commas. :raises ValueError: when there is no such block."""
    found: list[ActionTypes] = []
    for wanted in filter(None, (one.strip() for one in os.environ.get("STEELYARD_NOTIFY", "").split(","))):
        kind, _, name = wanted.partition("/")
        try:
            block = client.read_block_document_by_name(name, kind, include_secrets=False)
        except Exception as error:
            raise ValueError(f"STEELYARD_NOTIFY names {wanted}, and there is no such block: make it in the UI first") from error
        if kind == "webhook":
            found.append(CallWebhook(block_document_id=block.id, payload=PAYLOAD))
        else:
            found.append(SendNotification(block_document_id=block.id, subject=SUBJECT, body=BODY))
    return found


def apply_automations(client: SyncPrefectClient, *, fleet: bool = False) -> list[str]:
    """Make or update each by its name and return the names. Those that a user switched off in the UI stay off; doubles go."""
    names = []
    for wanted in automations(notifications(client), fleet=fleet):
        held = client.read_automations_by_name(wanted.name)
        if held:
            client.update_automation(held[0].id, wanted.model_copy(update={"enabled": held[0].enabled}))
            for double in held[1:]:
                client.delete_automation(double.id)
        else:
            client.create_automation(wanted)
        names.append(wanted.name)
    return names
