"""Config, lock, store and replicas: is what they name there, mounted, readable and writable."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from steelyard.config import Config, MountConfig
from steelyard.disk import existing_parent, free_bytes, gb, mount_at, probe_write
from steelyard.doctor.row import row
from steelyard.errors import MountAbsent, SteelyardError
from steelyard.fstab import bare, not_mounted
from steelyard.report import Row
from steelyard.site import Site

T = TypeVar("T")
S3_TIMEOUT_S = 20.0


def lock_row(site: Site) -> Iterator[Row]:
    lock = site.lock()
    absent = [name for name in site.config.models if site.locked_model(name) is None]
    if absent:
        yield row("lock", "unknown", f"nothing is agreed on yet for {', '.join(absent[:5])}", f"run: steelyard download {absent[0]}")
    else:
        yield row("lock", "ok", f"{site.lock_path}: {len(lock.models)} models")


def places(config: Config) -> Iterator[Row]:
    """The folders of the store: on the drive that is meant, and ours to list and to write."""
    found = {"store.models": config.store.models, "store.hf_home": config.store.hf_home, "store.outputs": config.store.outputs}
    for key, path in found.items():
        if path is not None:
            yield _place(key, path)
    free, wanted = free_bytes(config.store.models), config.store.min_free
    why = f"{gb(free)} free, {gb(wanted)} must stay free (store.min_free)"
    yield row("space", "ok" if free >= wanted else "failed", why, "see what may go with: steelyard clean")


def _place(key: str, path: Path) -> Row:
    if point := not_mounted(path):
        return row(key, "failed", bare(point, path), f"run: mount {point}")
    fix = f"make {path} and let this user read and write there"
    try:
        there = existing_parent(path)
        if not there.is_dir():
            return row(key, "failed", f"{there} is no folder", f"name a folder in {key}, or move that file away")
        next(os.scandir(there), None)
        probe_write(there)
    except SteelyardError as error:
        return row(key, "failed", error.message, fix)
    except OSError as error:
        return row(key, "failed", f"{error.filename or path} can't be read: {error.strerror or error}", fix)
    return row(key, "ok", f"{path} can be written" if there == path else f"{path} can be made in {there}")


def readable(site: Site) -> Iterator[Row]:
    """The files that are held, as this user finds them; none is read. Nothing is said where nothing is held."""
    held = [site.store.path_of(manifest, file.path) for manifest in site.held_manifests() for file in manifest.files]
    shut = [path for path in held if path.exists() and not os.access(path, os.R_OK)]
    if shut:
        why = f"this user may not read {shut[0]}{f' and {len(shut) - 1} more' if len(shut) > 1 else ''}"
        yield row("files", "failed", why, f"run: chmod u+r {shut[0]}, or give it to this user with chown")
    elif held:
        yield row("files", "ok", f"{len(held)} files of the store may be read")


def replica(name: str, site: Site) -> Iterator[Row]:
    check, settings, copy = f"replica {name}", site.config.replicas[name], site.replicas[name]
    if not isinstance(settings, MountConfig):
        try:
            _within(S3_TIMEOUT_S, lambda: copy.ready(write=False))
        except TimeoutError:
            yield row(check, "failed", f"no answer within {S3_TIMEOUT_S:.0f} s", "check endpoint_url and the network")
        else:
            yield row(check, "ok", f"bucket {settings.bucket} answers")
        return
    try:
        copy.ready(write=False)
        if settings.path.is_dir():
            probe_write(settings.path)
    except MountAbsent as error:
        # A drive in a drawer is no fault; another drive in its place is.
        point = settings.mount_point
        wrong = isinstance(point, Path) and mount_at(point) is not None
        yield row(check, "failed" if wrong else "unknown", error.message, error.hint)
        return
    what = f"on the drive at {settings.mount_point}" if settings.mount_point else "a plain folder"
    yield row(check, "ok", f"{settings.path}: {gb(free_bytes(settings.path))} free, {what}")


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
