"""move: take the store to another drive. Everything is carried and proven there first; then one step makes it current; the former place stays.

A killed move can be run again: what is there and proven is not carried twice, and the config names the old place until all of it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from steelyard.config import Config
from steelyard.config_edit import ConfigEdit, plan_edit
from steelyard.copies.base import Finding
from steelyard.disk import device_of, existing_parent, gb, make_folder, mount_at, probe_write, write_atomically
from steelyard.errors import BadRecord, Missing, Refused, SteelyardError, UsageError
from steelyard.former import formers, mark, write_former
from steelyard.fstab import refuse_bare
from steelyard.history import History
from steelyard.hubcache import HubCache
from steelyard.manifest import seal, unseal
from steelyard.moving import HISTORY, Recorded, bring, copy_as_is, copy_history, others, proof_of, put_link, recorded
from steelyard.names import OURS
from steelyard.report import Report, Row
from steelyard.sharing import share_views
from steelyard.site import Site
from steelyard.space import Need, check_room
from steelyard.staging import sweep_journals
from steelyard.steps import run_here
from steelyard.store import MOVED, Store
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

MOVING = "moving.json"
"""Marks a folder as the destination of a move that has not ended: what lies there is ours to go on with."""


@dataclass(frozen=True)
class Plan:
    """*edit*: what is written into the config; *config*: one that names *to*. With *link* the config names *old* still, which becomes a link."""

    old: Path
    to: Path
    link: bool
    edit: ConfigEdit
    config: Config
    known: list[Recorded]
    rest: list[Path]

    @property
    def aside(self) -> Path:
        """Where the former folder will lie after a move with *link*."""
        names = (self.old.with_name(f"{self.old.name}.moved{number}") for number in ["", *(f"-{n}" for n in range(2, 100))])
        return next(path for path in names if not path.exists() or path.is_symlink())


def move(site: Site, into: Path, *, hf_home: Path | None = None, link: bool = False) -> Report:
    """Make *into* the models folder; *hf_home* takes the hub cache along; *link*: the old path becomes a link there and the config stays.

    :raises UsageError, Refused: before anything is written.
    """
    report = Report("move")
    old, to = site.config.store.models, Path(os.path.abspath(into.expanduser()))
    with report.collecting():
        if _ended(site, old, to, link, report):
            return report.close()
        site.store.ready(write=False)
        _refuse_places(old, to, link)
        edit, config = _edit(site, old, to, hf_home, link)
        with _alone(site):
            known = recorded(site)
            rest = list(others(site.store.root.resolve(), {one.source.resolve() for one in known}))
            plan = Plan(old, to, link, edit, config, known, rest)
            _price(site, plan)
            target = Store(plan.config)
            make_folder(to)
            probe_write(to)
            if not (target.ours / MOVED).exists():
                write_atomically(target.ours / MOVING, seal({"from": str(old.resolve())}))
            _carry(site, plan, target, report)
            if report.ok:
                _switch(site, plan, target, report)
    return report.close()


# --- before anything is written


def _refuse_places(old: Path, to: Path, link: bool) -> None:
    here, there = old.resolve(), to.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UsageError(why=f"{to} and the store ({old}) lie inside one another", hint="name a folder elsewhere")
    if to.exists() and not to.is_dir():
        raise Refused(why=f"{to} is a file", hint="name a folder that is empty or not there yet")
    if link and mount_at(old) is not None:
        raise Refused(why=f"{old} is a mount point and can't become a link", hint="leave --link away: the config then names the new place")
    refuse_bare(to)
    found = {path.name for path in to.iterdir()} - {"lost+found"} if to.is_dir() else set()
    if found and not _is_ours(to, here):
        hint = "name a folder that is empty or not there yet; steelyard adopt takes over weights that lie about"
        raise Refused(why=f"{to} holds {sorted(found)[0]} and is not empty", hint=hint)


def _is_ours(to: Path, here: Path) -> bool:
    """Whether a move of this store has begun there, or the store once was there."""
    try:
        found = unseal((to / OURS / MOVING).read_bytes(), to)
        return found.get("from") == str(here)
    except (OSError, BadRecord):
        return (to / OURS / MOVED).is_file()


def _edit(site: Site, old: Path, to: Path, hf_home: Path | None, link: bool) -> tuple[ConfigEdit, Config]:
    """What to write into the config, and the config of the new place. What lies in the store goes with it.

    :raises UsageError: when the new place would lie in a replica. :raises Refused: when the views would no longer be possible.
    """
    store = site.config.store
    values = {"store.hf_home": os.path.abspath(hf_home.expanduser())} if hf_home is not None else {}
    if not link:
        values["store.models"] = str(to)
        for key, path in (("store.hf_home", store.hf_home), ("store.outputs", store.outputs)):
            if path is not None and key not in values and path.is_relative_to(old):
                values[key] = str(to / path.relative_to(old))
    edit = plan_edit(site.path, values)
    config = edit.config.model_copy(update={"store": edit.config.store.model_copy(update={"models": to})}) if link else edit.config
    try:
        config.check_places()
    except ValueError as error:
        raise UsageError(why=str(error), hint="name a folder elsewhere") from error
    if store.views in {"hardlink", "reflink"} and device_of(to) != device_of(config.store.hub_cache):
        hint = "take the hub cache along with --hf-home DIR on the new drive, or run before: steelyard views copy"
        raise Refused(
            why=f"views = {store.views!r}, and {to} lies on another file system than the hub cache ({store.hub_cache})", hint=hint
        )
    return edit, config


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    with ExitStack() as stack:
        models = list(site.config.models)
        stack.enter_context(site.writing("store", models, "move"))
        stack.enter_context(site.writing("hub-cache", models, "move"))
        yield


def _price(site: Site, plan: Plan) -> None:
    """:raises NoSpace: for what is not there yet, with the reserve of the config."""
    target, reserve = Store(plan.config), site.config.store.min_free
    apart = device_of(plan.to) != device_of(plan.old)
    size = 0
    for one in plan.known:
        final = target.ours / "held" / one.manifest.model / one.manifest.commit / one.entry.path if one.kept else None
        final = final or target.path_of(one.manifest, one.entry.path)
        if apart and not final.exists():
            size += target.need_bytes(one.manifest, [one.entry])
    for path in plan.rest:
        there = plan.to / path.relative_to(plan.old.resolve())
        seen = path.lstat()
        size += seen.st_size if not there.exists() and not path.is_symlink() else 0
    needs = [Need(existing_parent(plan.to), size, reserve)]
    if plan.config.store.hf_home != site.config.store.hf_home:
        cache = HubCache(plan.config)
        views = sum(one.entry.size_bytes for one in plan.known if not one.kept and not cache.path_of(one.manifest, one.entry.path).exists())
        needs.append(Need(existing_parent(cache.root), views if plan.config.store.views in {"copy", "auto"} else 0, reserve))
    check_room(needs)


# --- carrying


def _carry(site: Site, plan: Plan, target: Store, report: Report) -> None:
    """Every recorded file, then the rest; a file that can't be proven is told and keeps the store where it is."""
    copies = _others_that_help(site)
    for one in plan.known:
        current_watch().check()
        with report.collecting():
            action, written, used = run_here(bring, site, target, one, copies)
            path = target.ours / "held" / one.manifest.model / one.manifest.commit / one.entry.path if one.kept else None
            facts = {"action": action, "bytes_written": written, "sources": used, "commit": one.manifest.commit, "sha256": one.entry.sha256}
            report.rows.append(
                Row(one.manifest.model, one.entry.path, "store", str(path or target.path_of(one.manifest, one.entry.path)), facts)
            )
            log.info("%s · %s → %s: %s", one.manifest.model, one.entry.path, target.root, action)
    written, root = 0, plan.old.resolve()
    for path in plan.rest if report.ok else ():
        current_watch().check()
        with report.collecting():
            written += copy_as_is(path, root, target.root / path.relative_to(root), target.ours / "staging")
    strangers = sum(OURS not in path.relative_to(root).parts for path in plan.rest)
    if strangers and report.ok:
        facts = {
            "action": "copied",
            "bytes_written": written,
            "files": strangers,
            "why": "recorded nowhere, so carried as it is and read back",
        }
        report.rows.append(Row("", "", "store", str(target.root), facts))


def _others_that_help(site: Site) -> list[str]:
    """Copies that can be read now: a piece that rotted in the store comes from them."""
    found = []
    for name in ["hub-cache", *site.replicas]:
        try:
            site.copies[name].ready(write=False)
        except SteelyardError as error:
            log.debug("%s can't help: %s", name, error)
            continue
        found.append(name)
    return found


# --- the switch


def _switch(site: Site, plan: Plan, target: Store, report: Report) -> None:
    """Records first, then the one step that makes the new place current, then word at the former one."""
    root = plan.old.resolve()
    copy_history(site.store.ours / HISTORY, target.ours / HISTORY)
    _record_proofs(History(target.ours / HISTORY), plan.known, target)
    sweep_journals(target.ours / "staging")
    new = Site(plan.config, site.path)
    if plan.config.store.hf_home != site.config.store.hf_home:
        for model, locked in site.lock().models.items():
            if model in site.config.models:
                manifest = new.manifest(model, locked.commit)
                share_views(new, model, locked, manifest.files)
    files = {path.relative_to(root).as_posix(): _state(path) for path in _carried(plan, root)}
    aside = plan.aside
    former = aside if plan.link and not plan.old.is_symlink() else root
    write_former(target.ours, former, str(plan.old) if plan.link else "", files)
    if plan.link:
        was_link = plan.old.is_symlink()
        put_link(plan.old, plan.to, aside)
        if was_link:
            aside.unlink(missing_ok=True)
        site.write_model_info()
    else:
        new.write_model_info()
    plan.edit.write()
    _end(target, plan.to)
    size = sum(one.entry.size_bytes for one in plan.known)
    (site if plan.link else new).history.event("move", "", "store", "ok", was=str(root), to=str(plan.to), bytes=size, files=len(plan.known))
    report.extra |= {"store": str(plan.to), "former": str(former), "config": str(site.path) if not plan.link else None}
    how = f"{plan.old} is a link to it" if plan.link else f"{site.path.name} says so"
    note = f"the store is at {plan.to} ({how}); {former} stays with {gb(size)} until: steelyard clean --apply"
    if plan.config.store.hf_home == site.config.store.hf_home:
        note += f"; the hub cache stays at {site.config.store.hub_cache} (take it along with --hf-home DIR)"
    elif site.config.store.hf_home.is_dir():
        note += f"; of the hub cache only what the config names was made anew, {site.config.store.hf_home} stays as it is"
    report.extra["note"] = note


def _carried(plan: Plan, root: Path) -> Sequence[Path]:
    """Recorded files and the record for programs: all that `clean` may take away at the former place beside our own folder."""
    found = [one.source.resolve() for one in plan.known]
    return [path for path in [*found, root / "model_info.json"] if path.is_file() and path.is_relative_to(root)]


def _state(path: Path) -> list[int]:
    seen = path.stat()
    return [seen.st_size, seen.st_mtime_ns]


def _record_proofs(history: History, known: Sequence[Recorded], target: Store) -> None:
    proofs: dict[tuple[str, str, str], dict[str, Finding]] = {}
    for one in known:
        name, finding = proof_of(one, target)
        proofs.setdefault((name, one.manifest.model, one.manifest.commit), {})[one.entry.path] = finding
    for (name, model, commit), findings in proofs.items():
        history.record_all(name, model, commit, findings)


def _end(target: Store, to: Path) -> None:
    """Word at every former place, and the end of this one being a destination or a former place itself."""
    (target.ours / MOVING).unlink(missing_ok=True)
    (target.ours / MOVED).unlink(missing_ok=True)
    for former in formers(target.ours):
        if former.path.is_dir() and former.path.resolve() != to.resolve():
            mark(former.path, to)


def _ended(site: Site, old: Path, to: Path, link: bool, report: Report) -> bool:
    """Whether the store is there already; what a kill after the switch left undone is done."""
    if not old.exists() and link:
        for former in formers(to / OURS):
            if former.link == str(old) and former.path.is_dir():
                put_link(old, to, former.path.with_name(f"{former.path.name}.new"))
    if not old.exists() or not to.is_dir() or old.resolve() != to.resolve():
        if not old.exists():
            raise Missing(path=str(old), hint="there is no store to move yet; set models in the config, then run: steelyard download")
        return False
    if (site.store.ours / MOVING).exists() or any(True for _ in formers(site.store.ours)):
        _end(site.store, to)
        site.write_model_info()
    report.rows.append(Row("", "", "store", str(to), {"action": "unchanged", "bytes_written": 0, "why": "the store is there already"}))
    return True
