"""doctor: what is wrong with this machine's set-up, and the fix for each. Changes nothing, and loads neither torch nor Prefect into this process."""

from __future__ import annotations

import email.utils
import importlib.metadata
import importlib.util
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from steelyard import orchestrator
from steelyard.config import Config, MountConfig, config_path, load_config
from steelyard.copies.base import Copy
from steelyard.disk import existing_parent, free_bytes, gb, mount_at, probe_write
from steelyard.errors import MountAbsent, SteelyardError
from steelyard.report import Report, Row
from steelyard.site import Site

T = TypeVar("T")
Verdict = Literal["ok", "failed", "unknown"]

PINNED = ("prefect", "fastapi", "sqlalchemy")
"""Where a newer one breaks the older without a word: pyproject.toml has the reasons."""
HUB_TIMEOUT_S = 10.0
S3_TIMEOUT_S = 20.0
TORCH_TIMEOUT_S = 60.0
MOST_CLOCK_ERROR_S = 300.0
POOL = "steelyard"
ZOMBIES = "steelyard: a run that stopped beating has crashed"


def doctor(config: Path | None = None) -> Report:
    """One row for each thing that must be right. "unknown" is what could not be found out, or does not matter here; only "failed" is exit code 1."""
    report = Report("doctor")
    report.rows += _pins()
    report.rows.append(_torch())
    try:
        settings = load_config(config)
    except SteelyardError as error:
        report.rows.append(_row("config", "failed", error.message, error.hint))
    else:
        report.rows.append(_row("config", "ok", f"{config_path(config)}: {len(settings.models)} models, {len(settings.replicas)} replicas"))
        site = Site(settings, config_path(config))
        report.rows.append(_lock(site))
        report.rows += _places(settings)
        report.rows += [_replica(name, settings, copy) for name, copy in site.replicas.items()]
        report.rows += _hub(settings)
    report.rows += _prefect()
    return report.close()


def _row(check: str, verdict: Verdict, why: str = "", fix: str = "") -> Row:
    facts = {"check": check, "verdict": verdict, "why": why, "fix": fix if verdict != "ok" else ""}
    return Row(facts=facts, exit_code=1 if verdict == "failed" else 0)


# --- this environment


def _pins() -> Iterator[Row]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("steelyard") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield _row("pins", "unknown", "steelyard is not installed here, so its requirements can't be read", "run: make setup")
        return
    for one in wanted:
        if one.name not in PINNED:
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield _row(f"pin {one.name}", "failed", "it is not installed", "run: make setup")
            continue
        holds = one.specifier.contains(version, prereleases=True)
        why = f"{version}, as {one.specifier} asks" if holds else f"{version} is installed, {one.specifier} is needed"
        yield _row(f"pin {one.name}", "ok" if holds else "failed", why, f"run: pip install '{one.name}{one.specifier}'")


def _torch() -> Row:
    """In a process of its own: torch takes seconds and 200 MB, and a broken build may take its process with it."""
    if importlib.util.find_spec("torch") is None:
        return _row("torch", "unknown", "it is not installed: load and drill can't test weights", "run: pip install 'steelyard[torch]'")
    look = "import torch; print(torch.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'cpu', sep='|')"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", look], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _row("torch", "failed", f"it is not loaded after {TORCH_TIMEOUT_S:.0f} s", "install it anew: make setup")
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"its process ended with {done.returncode}")
        return _row("torch", "failed", f"it does not load: {last.strip()[:200]}", "install it anew: make setup")
    version, _, device = done.stdout.strip().partition("|")
    return _row("torch", "ok", f"{version} on {device}")


# --- what is held


def _lock(site: Site) -> Row:
    try:
        lock = site.lock()
        absent = [name for name in site.config.models if site.locked_model(name) is None]
    except SteelyardError as error:
        return _row("lock", "failed", error.message, error.hint)
    if absent:
        return _row("lock", "unknown", f"nothing is agreed on yet for {', '.join(absent[:5])}", f"run: steelyard download {absent[0]}")
    return _row("lock", "ok", f"{site.lock_path}: {len(lock.models)} models")


def _places(config: Config) -> Iterator[Row]:
    places = {"store.models": config.store.models, "store.hf_home": config.store.hf_home, "store.outputs": config.store.outputs}
    for key, path in places.items():
        if path is None:
            continue
        there = existing_parent(path)
        try:
            probe_write(there)
        except SteelyardError as error:
            yield _row(key, "failed", error.message, f"make {path} and let this user write there")
        else:
            yield _row(key, "ok", f"{path} can be written" if there == path else f"{path} can be made in {there}")
    free, wanted = free_bytes(config.store.models), config.store.min_free
    why = f"{gb(free)} free, {gb(wanted)} must stay free (store.min_free)"
    yield _row("space", "ok" if free >= wanted else "failed", why, "see what may go with: steelyard clean")


def _replica(name: str, config: Config, copy: Copy) -> Row:
    check, settings = f"replica {name}", config.replicas[name]
    if not isinstance(settings, MountConfig):
        try:
            _within(S3_TIMEOUT_S, lambda: copy.ready(write=False))
        except SteelyardError as error:
            return _row(check, "failed", error.message, error.hint)
        except TimeoutError:
            return _row(check, "failed", f"no answer within {S3_TIMEOUT_S:.0f} s", "check endpoint_url and the network")
        return _row(check, "ok", f"bucket {settings.bucket} answers")
    try:
        copy.ready(write=False)
        if settings.path.is_dir():
            probe_write(settings.path)
    except MountAbsent as error:
        # A drive in a drawer is no fault; another drive in its place is.
        point = settings.mount_point
        wrong = isinstance(point, Path) and mount_at(point) is not None
        return _row(check, "failed" if wrong else "unknown", error.message, error.hint)
    except SteelyardError as error:
        return _row(check, "failed", error.message, error.hint)
    what = f"on the drive at {settings.mount_point}" if settings.mount_point else "a plain folder"
    return _row(check, "ok", f"{settings.path}: {gb(free_bytes(settings.path))} free, {what}")


# --- the other side


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token must not follow a redirect to another host."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


def _hub(config: Config) -> Iterator[Row]:
    from huggingface_hub import get_token

    endpoint, token = config.hub.effective_endpoint, get_token()
    name, model = next(iter(config.models.items()))
    try:
        status, date = _get(f"{endpoint}/api/models/{model.repo_id}/revision/{model.revision}", token)
    except (OSError, ValueError) as error:
        why = f"{endpoint} does not answer: {_reason(error)}"
        yield _row("hub", "failed", why, "check the network, and [hub] endpoint or HF_ENDPOINT")
        return
    if status < 400:
        yield _row("hub", "ok", f"{endpoint} answers for {model.repo_id}")
    elif status in {401, 403, 404}:
        yield _row(
            "hub",
            "failed",
            f"{endpoint} answers {status} for {model.repo_id} (models.{name})",
            "check repo_id and revision, and set HF_TOKEN where the repo is private or gated",
        )
    else:
        yield _row("hub", "failed", f"{endpoint} answers {status}", "try again later")
    yield _token(endpoint, token)
    yield _clock(date)


def _token(endpoint: str, token: str | None) -> Row:
    if token is None:
        return _row("hub token", "ok", "none is set; public repos need none")
    try:
        status, _ = _get(f"{endpoint}/api/whoami-v2", token)
    except (OSError, ValueError) as error:
        return _row("hub token", "unknown", _reason(error))
    if status in {401, 403}:
        return _row(
            "hub token",
            "failed",
            f"the Hub refuses it ({status})",
            "set a valid HF_TOKEN, or run: hf auth login; a bad one is worse than none",
        )
    return _row("hub token", "ok" if status < 400 else "unknown", "the Hub accepts it" if status < 400 else f"the Hub answers {status}")


def _get(url: str, token: str | None) -> tuple[int, datetime | None]:
    """Status and date of the answer. :raises OSError, ValueError: when there is none."""
    request = urllib.request.Request(url)  # noqa: S310 (the user's own setting)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=HUB_TIMEOUT_S) as answer:
            status, headers = int(answer.status), answer.headers
    except urllib.error.HTTPError as error:
        status, headers = error.code, error.headers
    try:
        return status, email.utils.parsedate_to_datetime(headers["date"])
    except (TypeError, ValueError):
        return status, None


def _clock(there: datetime | None) -> Row:
    if there is None:
        return _row("clock", "unknown", "the Hub gave no date to compare with")
    off = abs((datetime.now(UTC) - there.astimezone(UTC)).total_seconds())
    why = f"{off:.0f} s from the Hub's"
    return _row(
        "clock",
        "ok" if off <= MOST_CLOCK_ERROR_S else "failed",
        why,
        "set the clock (timedatectl set-ntp true): signed links and S3 refuse a wrong one",
    )


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error).splitlines()[0][:160]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """*call*'s result or error; :raises TimeoutError: and leave its thread behind when it takes longer."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:  # noqa: BLE001 (handed over below)
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError
    return done[0]


# --- Prefect, asked over HTTP


def _prefect() -> Iterator[Row]:
    url = orchestrator.api_url()
    if url is None:
        why = "none is configured and `steelyard up` does not run: verbs run by themselves, schedules do not"
        yield _row("prefect server", "unknown", why, "run: steelyard up")
        return
    try:
        orchestrator.ask(url, "/health")
        version = str(orchestrator.ask(url, "/admin/version"))
    except (OSError, ValueError) as error:
        refused = getattr(error, "code", 0) == 401
        fix = "set PREFECT_API_AUTH_STRING as the server has it" if refused else "run: steelyard up, or correct PREFECT_API_URL"
        yield _row("prefect server", "failed", f"{url} does not answer as it should: {_reason(error)}", fix)
        return
    yield _row("prefect server", "ok", f"{version} at {url}")
    for check, look in (("worker", _worker), ("schedules", _schedules), ("late runs", _late), ("automations", _automations)):
        try:
            yield look(url)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield _row(
                check,
                "failed" if getattr(error, "code", 0) == 404 else "unknown",
                f"the server says: {_reason(error)}",
                "run: steelyard up",
            )


def _worker(url: str) -> Row:
    """Every pool of ours needs a worker: `steelyard` on one machine, `steelyard-…` for each machine of a fleet."""
    pools = {one["name"]: one for one in _all(url, "/work_pools/filter", {}) if one["name"] == POOL or one["name"].startswith(f"{POOL}-")}
    if not pools:
        return _row("worker", "failed", f"there is no work pool {POOL}", "run: steelyard up")
    polls: list[str] = []
    for name, pool in pools.items():
        workers = orchestrator.ask(url, f"/work_pools/{name}/workers/filter", {})
        online = [one["name"] for one in workers if one["status"] == "ONLINE"]
        if pool["is_paused"]:
            return _row(
                "worker", "failed", f"the work pool {name} is paused", f"resume it in the UI, or run: prefect work-pool resume {name}"
            )
        if not online:
            why = f"no worker polls the work pool {name}: runs wait for ever"
            return _row("worker", "failed", why, f"run: steelyard up, or: prefect worker start --pool {name}")
        polls.append(f"{', '.join(online)} polls {name}")
    return _row("worker", "ok", "; ".join(polls[:5]))


def _schedules(url: str) -> Row:
    """A schedule that is on must have produced a run in the future: the server may be healthy and yet never schedule."""
    deployments = list(_all(url, "/deployments/filter", {"deployments": {"tags": {"all_": ["steelyard"]}}}))
    wanted = {one["id"]: one["name"] for one in deployments if not one["paused"] and any(s["active"] for s in one["schedules"])}
    if not deployments:
        return _row("schedules", "failed", "no deployment of ours is there", "run: steelyard up, or: prefect deploy --all")
    if not wanted:
        return _row("schedules", "unknown", f"{len(deployments)} deployments, and no schedule is on", "switch one on in the UI")
    silent = [name for ident, name in wanted.items() if not _next_run(url, ident)]
    if silent:
        why = f"{', '.join(silent)} has a schedule and no run to come: the server does not schedule"
        return _row(
            "schedules", "failed", why, "wait a minute after `steelyard up`; then check the pin of sqlalchemy and look at the server's log"
        )
    return _row("schedules", "ok", f"{len(wanted)} schedules are on, each with runs to come")


def _next_run(url: str, deployment: str) -> bool:
    runs = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": datetime.now(UTC).isoformat()}}
    found = orchestrator.ask(url, "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": runs, "limit": 1})
    return bool(found)


def _late(url: str) -> Row:
    since = datetime.now(UTC) - timedelta(minutes=5)
    runs = {
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "expected_start_time": {"before_": since.isoformat()},
        "tags": {"all_": ["steelyard"]},
    }
    found = orchestrator.ask(url, "/flow_runs/filter", {"flow_runs": runs, "limit": 50})
    if not found:
        return _row("late runs", "ok", "none waits longer than five minutes")
    return _row(
        "late runs",
        "failed",
        f"{len(found)} runs wait, {found[0]['name']} first",
        "look at them in the UI: is a run of the same deployment stuck?",
    )


def _automations(url: str) -> Row:
    found = {one["name"]: one["enabled"] for one in _all(url, "/automations/filter", {})}
    if ZOMBIES not in found:
        return _row(
            "automations", "failed", "nothing ends the runs of a machine that died", "run: steelyard up, or: python -m deployments.apply"
        )
    off = [name for name, enabled in found.items() if name.startswith("steelyard") and not enabled]
    return _row(
        "automations", "unknown" if off else "ok", f"off: {', '.join(off)}" if off else f"{len(found)} are on", "switch them on in the UI"
    )


def _all(url: str, path: str, query: dict[str, Any], page: int = 200) -> Iterator[dict[str, Any]]:
    ends = time.monotonic() + 30
    for offset in range(0, 10_000, page):
        found = orchestrator.ask(url, path, {**query, "limit": page, "offset": offset})
        yield from found
        if len(found) < page or time.monotonic() > ends:
            return
