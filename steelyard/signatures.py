"""The signature of each model's weights files, kept with the store: what the user's program expects, so that a header alone tells whether weights fit.

A program's own word (`steelyard.expect`) wins; else it is what loaded here, by the digest of the bytes that did.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from steelyard.checkpoint import Fit, Inspection, Signature, fits, signature, signature_from_json
from steelyard.disk import write_atomically
from steelyard.errors import SteelyardError
from steelyard.names import confine
from steelyard.site import Site

log = logging.getLogger("steelyard")

PROGRAM = "program"
MOST_BYTES = 64 * 1024 * 1024


def _path(site: Site, model: str, file: str, origin: str) -> Path:
    """*origin* is a SHA-256, or PROGRAM."""
    return confine(site.store.ours / "signatures" / model, f"{file}/{origin}.json")


def record(site: Site, model: str, file: str, sha256: str, found: Inspection) -> None:
    """Keep the signature of a file that loaded. A store that can't be written keeps none."""
    path = _path(site, model, file, sha256)
    if path.is_file():
        return
    try:
        write_atomically(path, _dump(signature(found)))
    except (OSError, SteelyardError) as error:
        log.warning("%s · %s: its signature was not recorded: %s", model, file, error)


def record_program(site: Site, model: str, file: str, expected: Signature) -> Path:
    """Keep what the user's program says that it expects of *file*; it stays until the program says otherwise."""
    path = _path(site, model, file, PROGRAM)
    write_atomically(path, _dump(expected))
    return path


def _dump(found: Signature) -> bytes:
    return json.dumps(found.as_json(), ensure_ascii=False).encode() + b"\n"


def expected(site: Site, model: str, file: str, sha256: str = "") -> Signature | None:
    """What is expected of *file*: the program's own word, else what loaded with *sha256*. A damaged record counts as none."""
    for origin in (PROGRAM, *([sha256] if sha256 else [])):
        path = _path(site, model, file, origin)
        try:
            with path.open("rb") as held:
                value: Any = json.loads(held.read(MOST_BYTES))
            return signature_from_json(value)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s can't be used: %s", path, error)
    return None


def fit_of(site: Site, model: str, file: str, found: Inspection, *, held: Inspection | None = None) -> Fit | None:
    """What a strict load_state_dict of the user's program would say of *found*, from its header; None where nothing says what is expected.

    *found* is of any revision of *file*; what is expected is what the locked one has. *held* is its inspection, asked where nothing is recorded.
    """
    locked = site.lock().get(model)
    now = locked.get(file) if locked else None
    manifest = site.manifest(model, locked.commit).get(file) if locked else None
    sha256 = manifest.sha256 if manifest else now.sha256 if now else ""
    wanted = expected(site, model, file, sha256)
    if wanted is None and held is not None and held.tensors:
        wanted = signature(held)
    return fits(wanted, found) if wanted is not None else None
