"""Commands that bring, prove, copy and mend: the work of every night."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from steelyard.commands.base import COMMON, Asked, Common, Direct, Models, app
from steelyard.errors import UsageError
from steelyard.verbs import Call


@app.command
def init(path: Path | None = None, *, common: Common = COMMON) -> Asked:
    """Write a commented starter config for MVDream; refuses to overwrite.

    Parameters
    ----------
    path
        A file, or a folder for a steelyard.toml in it; else where every command looks: --config, STEELYARD_CONFIG, ./steelyard.toml.
    """
    from steelyard.init import init as write

    return Direct("init", lambda: write(path, common.config))


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
    if not 0 < timeout < 10**9:
        raise UsageError(why=f"--timeout {timeout:g}: a time-out is a number of seconds above 0", hint="leave it out for 600 seconds")
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
