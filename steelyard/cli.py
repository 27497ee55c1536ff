"""The commands. Parses, runs one verb, shows its report, and turns what happened into an exit code; nothing else is decided here."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from steelyard import __version__, orchestrator
from steelyard.disk import as_ours
from steelyard.errors import SteelyardError, Stopped, UsageError
from steelyard.report import Report
from steelyard.terminal import set_up_logging, show_error, show_json, show_report, watching
from steelyard.verbs import VERBS, Call, Engine, run_locally
from steelyard.watch import Watch

EXIT_CODES = """\
Exit codes: 0 all well · 1 something is missing, corrupt, untrusted or does not load · 2 wrong usage or config · \
3 refused before starting (space, mount absent, read-only, locked by another run) · 4 the other side failed \
(unreachable, access denied, gone) · 130 stopped. When several apply, the smallest that is not 0."""

app = App(
    name="steelyard",
    help="Keeps large model weights downloaded, verified, loadable, backed up and current, and proves it by restoring them.",
    help_epilogue=EXIT_CODES,
    help_format="plaintext",
    version=__version__,
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    config: Path | None = None
    """The config file; else STEELYARD_CONFIG, else ./steelyard.toml."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Exactly one JSON document on stdout; everything else goes to stderr."""
    here: Annotated[bool, Parameter(negative="")] = False
    """Run in this process even where a Prefect API is configured."""


COMMON = Common()
Models = Annotated[str, Parameter(help="Names from the config; none means all.")]


@dataclass(frozen=True)
class Direct:
    """A command that is no flow: *make* gives its report; *show* prints it where no JSON was asked for."""

    command: str
    make: Callable[[], Report]
    show: Callable[[Report], None] = show_report


Asked = Call | Direct


@app.command
def init(path: Path = Path(), *, common: Common = COMMON) -> Asked:
    """Write a commented starter config for MVDream; refuses to overwrite."""
    from steelyard.init import init as write

    return Direct("init", lambda: write(path))


@app.command
def download(*models: Models, locked: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON) -> Asked:
    """Resolve, lock, check space, fetch, verify, and publish into the store. Fetches what the lock says; only update moves the lock.

    Parameters
    ----------
    locked
        Just the bytes that steelyard.lock names, or fail: no revision is resolved, and the lock is never written.
    """
    return Call("download", common.config, {"models": models, "locked": locked})


@app.command
def verify(
    *models: Models,
    copy: str = "store",
    quick: Annotated[bool, Parameter(negative="")] = False,
    deep: Annotated[bool, Parameter(negative="")] = False,
    cold: bool | None = None,
    common: Common = COMMON,
) -> Asked:
    """Judge copies by the recorded digests; says which bytes are bad.

    Parameters
    ----------
    copy
        store, hub-cache, a replica's name, or all.
    quick
        Size, times and presence only; never better than the last proof.
    deep
        Read back what is otherwise proven by a store's own checksum.
    cold
        Read from the medium, not from memory; by default for replicas only.
    """
    from steelyard.copies.base import Look

    if quick and deep:
        raise UsageError(why="--quick and --deep contradict each other", hint="give one of them")
    return Call(
        "verify",
        common.config,
        {
            "models": models,
            "copy": copy,
            "look": Look("quick" if quick else "deep" if deep else "default", cold, wake=deep and copy != "all"),
        },
    )


@app.command
def load(
    *models: Models,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    timeout: float = 600.0,
    sign: Path | None = None,
    common: Common = COMMON,
) -> Asked:
    """Does it really load; in a child process with bounded time and memory.

    Parameters
    ----------
    device
        Where to load it; auto says which and why.
    timeout
        Longest time for one file, in seconds.
    sign
        An Ed25519 private key (PEM) to sign the certificates with; else the config's.
    """
    return Call("load", common.config, {"models": models, "device": device, "timeout_s": timeout, "sign": sign and sign.absolute()})


@app.command
def backup(
    *models: Models, to: str | None = None, dry_run: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """Bring replicas up to date: only proven bytes are carried, nothing is deleted or overwritten.

    Parameters
    ----------
    to
        One replica by name; its drive must then be there. None: all, and an absent drive is skipped.
    dry_run
        Only say what would be copied, and for a bucket the requests, bytes and (with prices in the config) the cost.
    """
    return Call("backup", common.config, {"models": models, "to": to, "dry_run": dry_run})


@app.command
def restore(
    model: str,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    revision: str | None = None,
    into: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """Bring a model back from its copies, proven by the Hub's SHA-256 before it gets its name.

    Parameters
    ----------
    from_
        One replica by name; else every copy is asked, piece by piece.
    revision
        A snapshot's commit (6 digits or more); else the locked one.
    into
        A folder; else the store.
    force
        Put what stands in the way into quarantine.
    """
    return Call("restore", common.config, {"model": model, "source": from_, "revision": revision, "into": into, "force": force})


@app.command
def repair(
    *models: Models, copy: str = "store", dry_run: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """Replace bad pieces from any copy whose piece verifies; the bad bytes go to quarantine.

    Parameters
    ----------
    copy
        store, hub-cache, a replica's name, or all.
    dry_run
        Only say what would be moved, and from where.
    """
    return Call("repair", common.config, {"models": models, "copy": copy, "dry_run": dry_run})


@app.command
def scrub(*models: Models, budget: str | None = None, common: Common = COMMON) -> Asked:
    """Verify everything a bit at a time, oldest proof first; gives way to a busy disk.

    Parameters
    ----------
    budget
        How much to read (50GB) or how long (30min); else everything.
    """
    return Call("scrub", common.config, {"models": models, "budget": budget})


@app.command
def drill(*models: Models, from_: Annotated[str | None, Parameter(name="--from")] = None, device: Literal["auto", "cpu", "cuda"] = "cpu",
          common: Common = COMMON) -> Asked:  # fmt: skip
    """Restore to scratch, verify, load, time it, clean up: the answer is how long you would be down.

    Parameters
    ----------
    from_
        One replica by name; else each replica in turn.
    device
        Where the restored weights are loaded.
    """
    return Call("drill", common.config, {"models": models, "source": from_, "device": device})


@app.command
def adopt(
    source: Path, model: str | None = None, *, apply: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """Take over weights that lie about already, if they prove to be what the Hub says; without --apply only report what each file is.

    Parameters
    ----------
    source
        A folder or a file.
    model
        A name from the config; else every model.
    apply
        Record or copy in what proves, and put what stands falsely under a name of the store into quarantine.
    """

    def make() -> Report:
        from steelyard.adopt import adopt as take_over
        from steelyard.site import Site

        return take_over(Site.open(common.config), source, model, apply=apply)

    return Direct("adopt", make)


@app.command
def clean(
    *, apply: Annotated[bool, Parameter(negative="")] = False, pip: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """What may go: superseded snapshots and revisions, orphaned partials, old quarantine, unfinished downloads, old outputs, caches.

    Parameters
    ----------
    apply
        Remove it; without this it is only named.
    pip
        pip's cache too.
    """

    def make() -> Report:
        from steelyard.clean import clean as look
        from steelyard.site import Site

        return look(Site.open(common.config), apply=apply, pip=pip)

    return Direct("clean", make)


@app.command
def move(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    hf_home: Path | None = None,
    link: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """Take the store to another drive: carried and proven there first, then switched to; the former place stays until clean --apply.

    Parameters
    ----------
    folder
        The new models folder: empty, or not there yet.
    hf_home
        A new HF_HOME, for the hub cache to be made anew there.
    link
        Leave the config as it is, and make the old path a link to DIR.
    """

    def make() -> Report:
        from steelyard.move import move as take
        from steelyard.site import Site

        return take(Site.open(common.config), folder, hf_home=hf_home, link=link)

    return Direct("move", make)


@app.command
def views(kind: Literal["copy", "reflink", "hardlink", "auto"], *, common: Common = COMMON) -> Asked:
    """Change how the store and the hub cache share bytes, file by file, each proven first; and write that into the config.

    Parameters
    ----------
    kind
        copy: two real copies; reflink: one set of blocks, two files (btrfs, xfs); hardlink: one file, two names; auto: reflink where it can be had.
    """

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.views import views as change

        return change(Site.open(common.config), kind)

    return Direct("views", make)


@app.command
def target(
    name: str,
    *,
    label: str | None = None,
    forget: str | None = None,
    versioning: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """Put the marker on a replica's drive or bucket and probe what it can do; from then on no other drive is taken for it.

    Parameters
    ----------
    label
        What you call this drive, where several take turns: "B".
    forget
        The id of a drive (its first digits), or its label, that is no longer expected.
    versioning
        Have the bucket keep older versions from now on; without this it is only told whether it does.
    """

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.target import target as mark

        return mark(Site.open(common.config), name, label=label, forget=forget, versioning=versioning)

    return Direct("target", make)


@app.command(name="check-updates")
def check_updates(*models: Models, common: Common = COMMON) -> Asked:
    """What changed upstream and what it means; changes nothing that is held."""
    return Call("check-updates", common.config, {"models": models})


@app.command(name="disk-watch")
def disk_watch(*, common: Common = COMMON) -> Asked:
    """How full each disk is, what is whose, when it runs out, and whether it tells of errors. Exit code 1 where one is at its error level."""
    return Call("disk-watch", common.config, {})


@app.command
def update(model: str, *, to: str | None = None, plan: str | None = None, common: Common = COMMON) -> Asked:
    """Take the new version: fetched beside the old one, proven, loaded, then switched to; the old one is kept.

    Parameters
    ----------
    to
        A branch, tag or commit; else the config's revision.
    plan
        The digest of a plan that check-updates wrote: just that is taken, and refused if upstream has moved since.
    """
    return Call("update", common.config, {"model": model, "to": to, "plan": plan})


@app.command
def rollback(model: str, *, common: Common = COMMON) -> Asked:
    """Go back to the revision that was current before; no network, seconds."""
    return Call("rollback", common.config, {"model": model})


@app.command(name="inspect")
def inspect_command(
    *sources: Annotated[str, Parameter(required=True)],
    fits: str | None = None,
    tensors: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """A weights file by path, hf://repo_id[@revision]/path or s3://bucket/key, without loading it; two sources: their difference.

    Parameters
    ----------
    fits
        A model of the config: would its program's strict load_state_dict take this file? Its allowance counts too.
    tensors
        List every tensor.
    """

    def make() -> Report:
        from steelyard.errors import ConfigMissing
        from steelyard.inspecting import inspect_sources
        from steelyard.site import Site

        try:
            site = Site.open(common.config)
        except ConfigMissing:
            if common.config is not None:
                raise
            site = None
        return inspect_sources(sources, site, model=fits)

    def show(report: Report) -> None:
        show_report(report)
        if tensors:
            from steelyard.inspecting import show_tensors

            show_tensors(report)

    return Direct("inspect", make, show)


@app.command
def status(
    *,
    fleet: Annotated[bool, Parameter(negative="")] = False,
    publish: Annotated[bool, Parameter(negative="")] = False,
    html: Path | None = None,
    metrics: Path | None = None,
    common: Common = COMMON,
) -> Asked:
    """What is held where, how it is, and how full the disk is; reads no weights and asks no network.

    Parameters
    ----------
    fleet
        Every machine, by the inventories that the nightly rounds leave in the replicas.
    publish
        Leave this machine's inventory there first; the nightly round does it by itself.
    html
        Write it to this file as one self-contained page, with disks, drills and runs.
    metrics
        Write it to this file for Prometheus (a textfile of node_exporter).
    """
    if (fleet or publish) and (html is not None or metrics is not None):
        raise UsageError(why="--html and --metrics are of this machine alone", hint="leave --fleet and --publish away")
    if fleet or publish:
        return Direct("status", lambda: _fleet(common, publish), _show_fleet)

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.status import status as look

        site = Site.open(common.config)
        report = look(site)
        if html is not None or metrics is not None:
            from steelyard.publishing import publish_status

            publish_status(site, report, html=html, metrics=metrics)
        return report

    def show(report: Report) -> None:
        from steelyard.status_view import show_status

        show_status(report)

    return Direct("status", make, show)


def _fleet(common: Common, publish: bool) -> Report:
    from steelyard.fleet import fleet
    from steelyard.site import Site

    return fleet(Site.open(common.config), publish_first=publish)


def _show_fleet(report: Report) -> None:
    from steelyard.fleet_view import show_fleet

    show_fleet(report)


@app.command
def doctor(*, common: Common = COMMON) -> Asked:
    """What is wrong with this machine's set-up, and the fix for each."""

    def make() -> Report:
        from steelyard.doctor import doctor as look

        return look(common.config)

    return Direct("doctor", make)


@app.command
def up(*, host: str | None = None, port: int | None = None, status_port: int | None = None, common: Common = COMMON) -> Asked:
    """Server, UI and schedules on this machine, until Ctrl-C. A second one says that one runs.

    Parameters
    ----------
    host
        Address to listen on; else PREFECT_SERVER_API_HOST, else 127.0.0.1.
    port
        Port; else PREFECT_SERVER_API_PORT, else 4200.
    status_port
        Port of the status page on the loopback; else the one after the UI's, else any that is free.
    """
    arguments = [
        *(["--host", host] if host else []),
        *(["--port", str(port)] if port else []),
        *(["--status-port", str(status_port)] if status_port is not None else []),
        *_passed_on(common),
    ]
    return Direct("up", lambda: _become("deployments.up", arguments))


@app.command
def demo(*, keep: Path | None = None, common: Common = COMMON) -> Asked:
    """The whole job on embedded stand-ins: a Hub, an S3 server and a folder as the drive, all on the loopback.

    Parameters
    ----------
    keep
        Keep what the demo made in this folder, to look at.
    """
    return Direct("demo", lambda: _become("flows.demo", [*(["--keep", str(keep)] if keep else []), *_passed_on(common)]))


def _passed_on(common: Common) -> list[str]:
    return [*(["--config", str(common.config)] if common.config else []), *(["--json"] if common.json else [])]


def _become(module: str, arguments: Sequence[str]) -> Report:
    """Replace this process by a module of the upper floors: the domain knows that they exist, and imports nothing of them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def main(argv: Sequence[str] | None = None, engine: Engine = run_locally) -> None:
    """Run one command and exit. *engine* runs a verb: here by default; flows/ hands in one that makes it a flow run."""
    # Imports make objects that stay; looking through them again and again is a tenth of a short command's time.
    gc.set_threshold(50_000, 20, 20)
    tokens = list(sys.argv[1:] if argv is None else argv)
    wants_json = "--json" in tokens
    set_up_logging()
    try:
        asked = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _end(_failed(_command(tokens), UsageError(why=_one_line(error), hint=f"see: steelyard {_command(tokens)} --help")), wants_json)
    except SteelyardError as error:
        _end(_failed(_command(tokens), error), wants_json)
    if not isinstance(asked, Call | Direct):
        sys.exit(0)  # --help and --version have printed what was asked for
    show: Callable[[Report], None] = show_report
    name = asked.verb if isinstance(asked, Call) else asked.command
    if isinstance(asked, Call) and engine is run_locally and "--here" not in tokens and orchestrator.api_url():
        os.environ["PREFECT_API_URL"] = str(orchestrator.api_url())
        _become("flows", tokens)
    try:
        with watching() as watch, _stoppable(watch):
            if isinstance(asked, Call):
                report = engine(asked)
            else:
                report, show = asked.make(), asked.show
    except KeyboardInterrupt:
        report = _failed(name, Stopped())
    except SteelyardError as error:
        report = _failed(name, error)
    except BrokenPipeError:
        os._exit(141)
    except OSError as error:
        report = _failed(name, as_ours(error, error.filename or "a file or folder of ours"))
    except Exception as error:
        if os.environ.get("STEELYARD_DEBUG"):
            raise
        report = _failed(name, _Unexpected(why=f"{type(error).__name__}: {error}".splitlines()[0]))
    _end(report, wants_json, show)


class _Unexpected(SteelyardError):
    """This should not have happened: {why}"""

    code = "unexpected"
    hint = "nothing was published half-way; set STEELYARD_DEBUG=1, run it again and report the traceback"


class _stoppable:
    """SIGINT and SIGTERM set the watch's stop and interrupt the main thread; a second SIGINT is Python's own."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def stop(number: int, _frame: FrameType | None) -> None:
            self._watch.stop.set()
            signal.signal(number, self._before[number])
            raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, stop)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _failed(command: str, error: SteelyardError) -> Report:
    report = Report(command)
    report.errors.append(error)
    return report.close()


def _command(tokens: Sequence[str]) -> str:
    known = {*VERBS, "init", "inspect", "status", "doctor", "up", "demo", "clean", "target", "adopt", "views", "move"}
    return next((token for token in tokens if token in known), "")


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _end(report: Report, wants_json: bool, show: Callable[[Report], None] = show_report) -> None:
    try:
        if wants_json:
            show_json(report)
        elif report.rows or report.ok:
            show(report)
        else:
            for error in report.errors:
                show_error(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(report.exit_code)
