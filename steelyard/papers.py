"""The papers of a model: licence, model card, config and tokenizer of its repo at the locked commit, kept beside the weights though not asked for.

They lie in <models>/.steelyard/papers/<model>/<commit>/ and, in a drive's snapshot, in .steelyard/papers/. They are no part of what the lock
agrees on: no verdict rests on them, and a download that has the weights and can't have the papers is whole.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.copies.folder import below
from steelyard.copies.mount import MountReplica
from steelyard.disk import errors_of, make_folder, read_regular, write_atomically
from steelyard.errors import BadRecord, SteelyardError
from steelyard.fetch import fetch_small, is_right
from steelyard.hub import Hub
from steelyard.line import Line
from steelyard.lock import LockedFile, LockedModel
from steelyard.manifest import seal, unseal
from steelyard.names import OURS, check_name, confine
from steelyard.pieces import Arrival
from steelyard.site import Site
from steelyard.watch import current_watch

log = logging.getLogger("steelyard")

PAPERS = "papers"
KINDS = (
    *("readme.md", "licen[cs]e*", "notice*", "copying*", "use_policy*", "*/licen[cs]e*"),
    *("config.json", "*/config.json", "*_config.json", "*/*_config.json", "model_index.json", "*.yaml", "*.yml"),
    *(
        "tokenizer*",
        "*/tokenizer*",
        "vocab.*",
        "*/vocab.*",
        "merges.txt",
        "*/merges.txt",
        "*tokens*.json",
        "*/*tokens*.json",
        "spiece.model",
    ),
)
"""fnmatch patterns of paths in the repo, in small letters; "*" crosses no border here that matters: what is too large is left out."""
MOST_EACH_BYTES = 32 * 1024**2
MOST_TOGETHER_BYTES = 64 * 1024**2
PATIENCE_S = 4.0
"""The weights are there: papers are not waited for."""


@dataclass(frozen=True)
class Papers:
    """*files* as the Hub publishes them; *licence* as its page for the repo says, or ""."""

    files: tuple[LockedFile, ...]
    licence: str = ""


def papers_folder(site: Site, model: str, commit: str) -> Path:
    return confine(confine(site.store.ours / PAPERS, model), commit)


def held_papers(site: Site, model: str, commit: str) -> Papers | None:
    """What is kept of *model* at *commit*; None where nobody looked yet, or the record is damaged."""
    record = _record(papers_folder(site, model, commit))
    try:
        found = unseal(read_regular(record), record)
        return Papers(tuple(_of(path, one) for path, one in found["files"].items()), str(found["licence"]))
    except (OSError, BadRecord, KeyError, TypeError, ValueError, AttributeError):
        return None


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def papers_among(files: Sequence[LockedFile], but: LockedModel) -> tuple[LockedFile, ...]:
    """Those of *files* that are papers, small, and not among what the lock holds already."""
    held = {file.path for file in but.files}
    found: list[LockedFile] = []
    for file in sorted(files, key=lambda one: one.size_bytes):
        path = file.path.lower()
        if file.path in held or file.size_bytes > MOST_EACH_BYTES or not any(fnmatch.fnmatchcase(path, kind) for kind in KINDS):
            continue
        try:
            check_name(file.path)
        except SteelyardError:
            continue
        if sum(one.size_bytes for one in found) + file.size_bytes <= MOST_TOGETHER_BYTES and path not in {
            one.path.lower() for one in found
        }:
            found.append(file)
    return tuple(sorted(found, key=lambda one: one.path))


def keep_papers(site: Site, model: str, locked: LockedModel) -> int:
    """Fetch what is not kept yet, each proven by the digest that the Hub publishes; how many files. A failure is told and harms nothing."""
    if not site.config.models[model].papers or held_papers(site, model, locked.commit) is not None:
        return 0
    settings = site.config.hub.model_copy(
        update={"patience": min(site.config.hub.patience, PATIENCE_S), "timeout": min(site.config.hub.timeout, PATIENCE_S)}
    )
    folder = papers_folder(site, model, locked.commit)
    line = Line(site.hub.endpoint, locked.repo_id, locked.commit, timeout_s=settings.timeout, connections=1, with_token=True)
    try:
        listing = site.hub.last_listing(locked.repo_id, locked.commit) or Hub(settings).listing(locked.repo_id, locked.commit)
        wanted = papers_among(listing.files, locked)
        for file in wanted:
            current_watch().check()
            final = confine(folder, file.path)
            if not _is_right(final, file):
                content, _, _ = fetch_small([line], file, patience_s=settings.patience)
                write_atomically(final, content)
        _write_record(folder, Papers(wanted, listing.license))
    except SteelyardError as error:
        if error.exit_code == 130:
            raise
        log.warning("%s: its papers (licence, card, config) are not kept yet: %s; the weights are whole all the same", model, error)
        return 0
    finally:
        line.close()
    if wanted:
        log.info("%s: %s kept with the weights", model, ", ".join(file.path for file in wanted[:4]) + (" …" if len(wanted) > 4 else ""))
    return len(wanted)


def _write_record(folder: Path, papers: Papers) -> None:
    files = {
        file.path: {"size_bytes": file.size_bytes, **({"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1})}
        for file in papers.files
    }
    make_folder(folder)
    write_atomically(_record(folder), seal({"files": files, "licence": papers.licence}))


def _is_right(path: Path, file: LockedFile) -> bool:
    try:
        content = read_regular(path) if path.stat().st_size == file.size_bytes else None
    except OSError:
        return False
    if content is None:
        return False
    arrival = Arrival(len(content), git=True)
    arrival.feed(content)
    return is_right(file, arrival.finish())


# --- with the copies


def carry_papers(site: Site, replica: MountReplica, model: str, commit: str) -> None:
    """Into the snapshot on a drive, which holds them for whoever has nothing but the drive."""
    papers = held_papers(site, model, commit)
    if papers is None or not papers.files:
        return
    source = papers_folder(site, model, commit)
    with replica.held() as root:
        snapshot = below(root, replica.root, replica.folder_of(model, commit)) / OURS
        for file in papers.files:
            final = confine(snapshot / PAPERS, file.path)
            if _is_right(confine(source, file.path), file) and not _is_right(final, file):
                with errors_of(final):
                    write_atomically(final, confine(source, file.path).read_bytes())
        _write_record(snapshot / PAPERS, papers)


def restore_papers(site: Site, model: str, commit: str) -> None:
    """Back into the store from a drive that has them; nothing depends on it."""
    if held_papers(site, model, commit) is not None:
        return
    target = papers_folder(site, model, commit)
    for replica in site.replicas.values():
        if not isinstance(replica, MountReplica):
            continue
        source = replica.folder_of(model, commit) / OURS / PAPERS
        try:
            found = unseal(read_regular(_record(source)), source)
            papers = Papers(tuple(_of(path, one) for path, one in found["files"].items()), str(found["licence"]))
            for file in papers.files:
                content = read_regular(confine(source, file.path))
                if not _is_right(confine(source, file.path), file):
                    raise BadRecord(path=file.path, why="it is not what its record says")
                write_atomically(confine(target, file.path), content)
        except (OSError, SteelyardError, KeyError, TypeError, ValueError, AttributeError) as error:
            log.debug("no papers from %s: %s", replica.name, error)
            continue
        _write_record(target, papers)
        return


def _of(path: str, one: dict[str, object]) -> LockedFile:
    return LockedFile(path, int(str(one["size_bytes"])), str(one.get("sha256", "")), str(one.get("git_sha1", "")))
