"""Reading a pickle's opcodes without running them: which names it needs, and which tensors it describes."""

from __future__ import annotations

import re
import struct
from typing import Any

from steelyard.checkpoint.pickle_opcodes import Machine, PickleWalk, Truncated
from steelyard.checkpoint.pickle_rebuild import NESTED_STORAGE
from steelyard.checkpoint.reasons import NotWeights, Reason, shown
from steelyard.checkpoint.trust import is_dangerous, judge_global, normal_name

__all__ = ["MAX_OPCODES", "MAX_PICKLE_BYTES", "PickleWalk", "Truncated", "walk"]

MAX_PICKLE_BYTES = 32 * 1024 * 1024
"""A 5 GB checkpoint's pickle has about 0.2 MB; one with optimizer state and ten thousand tensors 3 MB."""
MAX_OPCODES = 600_000
"""Stable Diffusion takes 30,000; one with 20,000 tensors 500,000. Walking this many takes about a second."""

_NESTED_STREAMS = 5
_NESTED_OPCODES = 1000

_NAME = re.compile(rb"[ci]([A-Za-z_][A-Za-z0-9_.]{0,200})\n([A-Za-z_][A-Za-z0-9_.]{0,200})\n")


def walk(
    data: bytes,
    start: int = 0,
    *,
    allow: frozenset[str] = frozenset(),
    torchscript: bool = False,
    max_opcodes: int = MAX_OPCODES,
    where: str = "",
    beyond: bool = True,
) -> PickleWalk:
    """Walk the pickle that begins at *start* of *data*; never raises for what the bytes contain, except for their end.

    With *beyond*, names are looked for behind a place that makes no sense, too: right for what is known to be a pickle, not for a text.

    :raises Truncated: when *data* ends before STOP, so that a caller with more of the file can try again.
    """
    machine = Machine(data, start, max_opcodes)
    try:
        machine.run()
    except NotWeights as error:
        machine.found.reasons.append(error.reason)
        if beyond:
            _names_beyond(machine)
    except Truncated:
        _judge_globals(machine, allow, torchscript, where)
        if any(reason.code == "dangerous-global" for reason in machine.found.reasons):
            return machine.found
        raise
    except (IndexError, ValueError, TypeError, AttributeError, OverflowError, struct.error, UnicodeError) as error:
        # The one place where a malformed opcode stream is mapped: an empty stack, a bad number, a value of the wrong kind.
        machine.found.reasons.append(
            Reason("pickle-broken", f"the pickle makes no sense at byte {machine.position} ({type(error).__name__})", where)
        )
        if beyond:
            _names_beyond(machine)
    _judge_globals(machine, allow, torchscript, where)
    return machine.found


def _names_beyond(machine: Machine) -> None:
    """Where the walk gives up, a real unpickler might not have: look for further names that could run code, so that the file is called by its name."""
    for found in _NAME.finditer(machine.data, machine.position, machine.position + MAX_PICKLE_BYTES):
        module, name = normal_name(found[1].decode(), found[2].decode())
        if is_dangerous(f"{module}.{name}"):
            machine.named[f"{module}.{name}"] = None


def _judge_globals(machine: Machine, allow: frozenset[str], torchscript: bool, where: str) -> None:
    found = machine.found
    unknown: list[str] = []
    dangerous: list[str] = []
    for path in machine.named:
        trust = judge_global(path, allow, torchscript=torchscript)
        if path == NESTED_STORAGE and found.complete and machine.nested and all(map(_plain_storage, machine.nested)):
            trust = "unknown"  # it unpickles its argument unsafely, but what it is given here could do no harm
        found.globals[path] = trust
        if trust == "dangerous":
            dangerous.append(path)
        elif trust == "allowed":
            found.reasons.append(Reason("allowed-global", f"{shown(path)} is on this model's allowance", where))
        elif trust == "unknown":
            unknown.append(path)
    if dangerous:
        found.reasons.append(Reason("dangerous-global", f"it would call what can run code: {_listed(dangerous)}", where))
    if unknown:
        found.reasons.append(Reason("unknown-global", f"it needs names that no state dict needs: {_listed(unknown)}", where))
    if machine.calls_value:
        found.reasons.append(Reason("calls-a-value", "it would call the result of another call", where))
    if machine.unsafe_opcodes:
        names = ", ".join(sorted(machine.unsafe_opcodes))
        found.reasons.append(Reason("pickle-opcode", f"torch's safe loader does not take the pickle opcodes {names}", where))


def _plain_storage(data: Any) -> bool:
    """Whether *data* is a storage as pickle.dump of a tensor writes it: a legacy checkpoint whose streams name nothing but what a state dict needs."""
    if not isinstance(data, bytes):
        return False
    at = 0
    try:
        for _ in range(_NESTED_STREAMS):
            walked = walk(data, at, max_opcodes=_NESTED_OPCODES)
            if not walked.complete or any(reason.code != "pickle-opcode" for reason in walked.reasons):
                return False
            if set(walked.globals.values()) - {"needed"}:
                return False
            at = walked.end
    except Truncated:
        return False
    return True


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(shown(name) for name in names[:20]) + more
