"""How a flow does its verb: shown in Prefect while it works, its report kept as artifacts, and its end as the report has it.

By hand, `run_as_flow` is the engine that the command line is given: the same verb, but every step a task that the UI shows.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from steelyard import orchestrator
from steelyard.config import load_config
from steelyard.errors import Busy, SteelyardError, Stopped
from steelyard.orchestrator import answers as answers
from steelyard.report import Report, summary
from steelyard.verbs import VERBS, Call, run_locally

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import Flow, State

    from flows.options import Options
    from steelyard.site import Site

log = logging.getLogger("steelyard")

FLOWS = {
    "download": "flows.download:download_models",
    "verify": "flows.verify:verify_models",
    "load": "flows.load:test_model_loading",
    "backup": "flows.backup:backup_models",
    "restore": "flows.restore:restore_model",
    "repair": "flows.repair:repair_models",
    "scrub": "flows.scrub:scrub_models",
    "drill": "flows.drill:drill_restore",
    "update": "flows.update:update_model",
    "rollback": "flows.update:rollback_model",
    "apply-update": "flows.update:apply_update",
    "check-updates": "flows.check_updates:check_updates",
    "disk-watch": "flows.disk_watch:disk_watch",
    "keep": "flows.keep_models:keep_models",
}
"""Verb -> its flow. Named, not imported: Prefect takes seconds to load."""
STOPPED = "Stopped by hand; the next run goes on from here."

MOST_TAGS = 12
BESIDE_S, LOOK_S = 600.0, 5.0
"""How long a run that is taken up again waits for its first try to end, and how often it looks."""


@dataclass
class _Outcome:
    """What became of the verb; the flow's body fills it in, whoever started the flow may read it."""

    report: Report | None = None
    begun: bool = False


_outcome: ContextVar[_Outcome | None] = ContextVar("steelyard_outcome", default=None)


def run_as_flow(call: Call) -> Report:
    """Run the verb as a flow run in this process. Where Prefect's API is away, or can't begin a run, say so and run it without."""
    if call.verb not in FLOWS:
        return run_locally(call)
    # A slip of the finger is told at once, and is no run in anyone's history.
    load_config(call.config).chosen([*call.params.get("models", ()), *filter(None, [call.params.get("model")])])
    if api_url := _find_api():
        if not answers(api_url):
            log.warning("the Prefect API at %s does not answer: running without it, nothing will show there", api_url)
            return _without_prefect(call)
    else:
        log.info("no Prefect API is configured: starting one for this run, which takes some seconds")
    from prefect.exceptions import TerminationSignal

    flow, options = flow_of(call)
    outcome = _Outcome()
    token = _outcome.set(outcome)
    ended: State[Any] | Exception
    try:
        ended = flow(options, return_state=True)
    except TerminationSignal as error:
        raise Stopped() from error
    except Exception as error:  # noqa: BLE001 (raised below, unless it is Prefect's own trouble)
        ended = error
    finally:
        _outcome.reset(token)
    if outcome.report is not None:
        if isinstance(ended, Exception):
            log.warning("the work is done, but Prefect could not record its end: %s", type(ended).__name__)
        return outcome.report
    if not isinstance(ended, Exception) and ended.is_cancelled():
        raise Stopped()
    if not outcome.begun:
        why = f"{type(ended).__name__}: {ended}" if isinstance(ended, Exception) else ended.message
        log.warning("Prefect could not begin the run (%s): running without it", str(why)[:200])
        return _without_prefect(call)
    if isinstance(ended, Exception):
        raise ended
    ended.result(raise_on_failure=True)
    raise Stopped()


def _find_api() -> str | None:
    """Where runs are to show; Prefect is told, and read again where `python -m flows.VERB` has loaded it already."""
    api_url = orchestrator.api_url()
    if api_url and os.environ.get("PREFECT_API_URL") != api_url:
        os.environ["PREFECT_API_URL"] = api_url
        if "prefect.context" in sys.modules:
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
    if api_url is None:
        from prefect.settings import get_current_settings

        # `prefect config set PREFECT_API_URL=…`, in the profile that is active.
        api_url = get_current_settings().api.url
    return api_url


def _without_prefect(call: Call) -> Report:
    """The verb in this process. The nightly round is no verb of the command line: its order is written in flows/."""
    if call.verb in VERBS:
        return run_locally(call)
    from flows.keep_models import keep
    from steelyard.runs import remembered
    from steelyard.site import Site
    from steelyard.steps import run_here

    assert call.verb == "keep"
    site = Site.open(call.config)
    return remembered(site, call.verb, lambda: keep(site, call.params["models"], mend=call.params["repair"], run=run_here))


def flow_of(call: Call) -> tuple[Callable[..., State[Any]], Options]:
    """The flow of the verb, and its parameters as the command line gave them."""
    module, _, name = FLOWS[call.verb].partition(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
    kind: type[Options] = get_type_hints(flow.fn)["options"]
    return cast("Callable[..., State[Any]]", flow), kind.of(call.config, call.params)


def by_hand(verb: str) -> None:
    """The command line of one verb, as a flow run: `python -m flows.download mvdream --json`."""
    from steelyard.cli import main

    main([verb, *sys.argv[1:]], engine=run_as_flow)


# --- inside a flow


def perform(verb: str, options: Options, work: Callable[[Site], Report]) -> State[Any] | Report:
    """The body of every flow: open the site, do the *work*, keep its report, and end Failed with one sentence where it is not well.

    Errors that concern the whole call (config, usage) are a report too.
    """
    from prefect.context import FlowRunContext
    from prefect.exceptions import TerminationSignal
    from prefect.states import Cancelled, Failed

    from flows.artifacts import keep_notes, keep_report, keep_state, tag_run
    from flows.events import tell, tell_crash
    from steelyard.runs import remembered
    from steelyard.site import Site
    from tasks.logs import logs_in_prefect
    from tasks.progress import watched_in_prefect

    context = FlowRunContext.get()
    assert context is not None and context.flow is not None and context.flow_run is not None
    outcome = _outcome.get() or _Outcome()
    outcome.begun = True
    site: Site | None = None
    with logs_in_prefect(context.flow_run.id):
        try:
            with watched_in_prefect():
                site = Site.open(options.config)
                # Runs over all models are found by each model's tag too, as long as the tags fit on a screen.
                every = () if _names_models(options) or len(site.config.models) > MOST_TAGS else tuple(site.config.models)
                tag_run(context, {"steelyard", verb, *options.tags, *every})
                opened = site
                again = (context.flow_run.run_count or 0) > 1
                report = remembered(opened, verb, lambda: once_free(lambda: work(opened), again=again))
        except (KeyboardInterrupt, Stopped):
            log.warning("stopped; the next run goes on from here")
            return Cancelled(message=STOPPED)
        except TerminationSignal:
            _say_cancelled(context.flow_run.id)
            raise
        except SteelyardError as error:
            report = Report(verb)
            report.errors.append(error)
            report.close()
        except Exception as error:
            tell_crash(verb, options.title, error)
            raise
        outcome.report = report
        log.log(logging.INFO if report.ok else logging.ERROR, "%s", summary(report))
        tell(site, report, options.title)
        keep_notes(report)
        if keep_report(context.flow.name, report) and site is not None:
            keep_state(site)
    return report if report.ok else Failed(message=sentence(report))


def once_free(work: Callable[[], Report], *, again: bool) -> Report:
    """*work* done, and done *again* after a wait where another run holds its lock: a run that was taken up again meets its own first try, whose process
    outlived the worker that started it. That one does the work; this one finds it done. A run's first try is refused at once, like a command.
    """
    ends, told = time.monotonic() + BESIDE_S, False
    while True:
        report = work()
        if not again or time.monotonic() > ends or not any(isinstance(error, Busy) for error in report.errors):
            return report
        if not told:
            log.info("this run was begun before, and its first try may be at it still: waiting for it to end")
            told = True
        time.sleep(LOOK_S)


def _say_cancelled(run: UUID) -> None:
    """Tell Prefect that a cancel is done: all is let go of here, and what is left is the end of this process.

    The worker says so too, but only after it has waited for that and has started another process to look for hooks of ours: on a busy machine,
    half a minute in which the UI shows a run that has long stopped. A signal that is no cancel (`up` ends) is left to Prefect.
    """
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
            if state is not None and state.is_cancelling():
                client.set_flow_run_state(run, Cancelled(message=STOPPED), force=True)
    except Exception as error:  # noqa: BLE001 (the worker says it in the end)
        log.warning("the cancel could not be acknowledged: %s", type(error).__name__)


def _names_models(options: Options) -> bool:
    return bool(getattr(options, "models", ()) or getattr(options, "model", ""))


def sentence(report: Report) -> str:
    """Why the run failed, and what to do: the first error, or the first row that is not well."""
    told = summary(report)
    for error in report.errors:
        return f"{told}: {error.message}" + (f" Next: {error.hint}" if error.hint else "")
    for row in report.rows:
        if row.exit_code:
            where = " in ".join(part for part in (row.file or row.model, row.copy) if part)
            why = f" ({row.facts['why']})" if row.facts.get("why") else ""
            return f"{told}: {where} is {row.outcome}{why}."
    return told
