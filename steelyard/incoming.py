"""A new revision's files before they are current: fetched beside what is held, with what the two share, then loaded and compared with it."""

from __future__ import annotations

from pathlib import Path

from steelyard.checkpoint import Fit, LoadReport, fits, inspect, load_check, signature
from steelyard.disk import errors_of, publish, write_atomically
from steelyard.errors import SteelyardError
from steelyard.fetch import SMALL_BYTES, fetch_small
from steelyard.held import proven
from steelyard.into_store import Action, Got, blob_of, fetched_from_hub
from steelyard.lock import LockedFile
from steelyard.lookahead import Ahead
from steelyard.manifest import FileEntry
from steelyard.names import confine
from steelyard.plans import UpdatePlan
from steelyard.signatures import expected
from steelyard.site import Site
from steelyard.source import LocalFile
from steelyard.staging import partial_paths
from steelyard.watch import current_watch


def fetch_incoming(site: Site, plan: UpdatePlan, file: LockedFile, incoming: Path, ahead: Ahead) -> Got:
    """One changed file of the new revision, proven by the Hub's digest, into *incoming*. What a killed update brought is kept, and what the held
    file (or one of another name with these bytes, or the hub cache) has in common with it is not fetched.
    """
    final = confine(incoming, file.path)
    already = proven(final, file) if arrived(incoming, file) else None
    if already is not None:
        return Got(already, "unchanged")
    lines = site.lines(plan.new)
    try:
        if file.size_bytes <= SMALL_BYTES:
            content, digests, retries = fetch_small(lines, file, patience_s=site.config.hub.patience)
            write_atomically(final, content)
            return Got(FileEntry.of(file.path, digests, file.etag), "downloaded", len(content), retries=retries)
        old, same = _likest(site, plan, file)
        fetched = fetched_from_hub(site, file, old, lines, ahead, same=same)
    finally:
        for line in lines:
            line.close()
    partial, journal = partial_paths(site.store.ours / "staging", file.path, file.etag)
    with errors_of(final):
        publish(partial, final)
        journal.unlink(missing_ok=True)
    action: Action = "resumed" if fetched.resumed else "downloaded"
    return Got(fetched.entry, action, fetched.bytes_fetched, fetched.bytes_reused, fetched.retries)


def arrived(incoming: Path, file: LockedFile) -> bool:
    """Whether a file of its size is there; its bytes are not looked at."""
    path = confine(incoming, file.path)
    return path.is_file() and path.stat().st_size == file.size_bytes


def _likest(site: Site, plan: UpdatePlan, file: LockedFile) -> tuple[Path, bool]:
    """What at hand has most in common with the new file: its very bytes (True) in the hub cache or under another name, else the older version."""
    blob = blob_of(site, plan.new, file)
    if blob.is_file():
        return blob, True
    same = next((one.path for one in plan.old.files if one.etag == file.etag), None)
    return site.store.path_of_model(plan.model, same or file.path), same is not None


def load_incoming(site: Site, model: str, path: Path, sha256: str) -> LoadReport:
    """Does the new file, which has *sha256*, load, before it is switched to."""
    allowed = site.config.models[model].allowed(sha256)
    return load_check(path, "cpu", stop=current_watch().stop, allow_globals=allowed)


def compare_incoming(site: Site, plan: UpdatePlan, name: str, path: Path) -> Fit:
    """Would the user's program, or a strict loader of the held version, take the new file: names and shapes, from both headers."""
    settings = site.config.models[plan.model]
    was, now = (one.sha256 if (one := side.get(name)) else "" for side in (plan.old, plan.new))
    try:
        with LocalFile(site.store.path_of_model(plan.model, name)) as old, LocalFile(path) as new:
            wanted = expected(site, plan.model, name) or signature(inspect(old, allow_globals=settings.allowed(was)))
            return fits(wanted, inspect(new, allow_globals=settings.allowed(now)))
    except SteelyardError as error:
        return Fit("unknown", sentence=f"the two can't be compared: {error.message}")
