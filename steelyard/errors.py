"""Every error a user can meet, drawn once.

    SteelyardError
    ├── UsageError                2   wrong usage or config
    │   ├── ConfigMissing             no config file where we looked
    │   ├── ConfigBroken              a key, type, unit or combination is wrong
    │   ├── UnknownModel              a model that the config does not name
    │   ├── UnknownCopy               a copy that the config does not name
    │   └── LockMismatch              the config asks for something else than the lock holds
    ├── NotWhole                  1   something is missing, corrupt, untrusted or does not load
    │   ├── Missing                   nothing is there
    │   ├── Corrupt                   bytes differ from the recorded digest; .ranges
    │   │   └── SourceRotten          the copy to read from is corrupt, so nothing was carried on
    │   ├── Unreadable                the medium gives an error; .ranges
    │   ├── WrongType                 a folder, device or link where a file should be
    │   ├── Unproven                  no recorded digest to judge by
    │   ├── BadRecord                 a manifest or lock that fails its own digest
    │   ├── TooFewCopies              fewer whole copies on separate devices than min_copies asks for
    │   ├── NotLoadable               the checkpoint is broken, untrusted, too big or unsupported
    │   └── Untrusted                 it would run code, or the Hub's scan flags it; nothing was published
    ├── Refused                   3   refused before starting; nothing was changed
    │   ├── NoSpace                   too little room for the plan
    │   ├── MountAbsent               the drive is not mounted, or not the right one
    │   ├── ReadOnly                  the place can't be written
    │   ├── OutsideHours              a scheduled round outside the hours in which it may use a line
    │   ├── Busy                      another run holds the lock
    │   └── UnsafeName                a name from outside that would leave its root
    ├── OtherSide                 4   the other side failed
    │   ├── Unreachable               network, DNS, TLS, time-out, 5xx, 429: weather, worth a retry
    │   ├── AccessDenied              401 or 403
    │   ├── Gone                      404 or 410: repo, revision, file or bucket
    │   ├── Archived                  its bytes lie in an archive; they were asked back and can be read later
    │   └── BadAnswer                 an answer that is not of the protocol, or that contradicts itself
    └── Stopped                 130   asked to stop; the next run goes on where this one was

The class docstring's first line is the message's template; the attributes are its facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

Range = tuple[int, int]


class SteelyardError(Exception):
    """{why}"""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"
    hint: str = ""
    transient: ClassVar[bool] = False
    """Weather: the same call may succeed in a minute. Corruption and refusals are never transient."""

    def __init__(self, *, hint: str = "", **facts: Any) -> None:
        self.facts = facts
        for key, value in facts.items():
            setattr(self, key, value)
        template = (self.__doc__ or "{why}").strip().splitlines()[0]
        message = template.format_map(_Facts(facts))
        super().__init__(message)
        self.message = message
        self.hint = hint or type(self).hint.format_map(_Facts(facts))

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders (Prefect results, child processes) with their facts.
        return (_rebuild, (type(self), self.hint, self.facts))

    def as_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _rebuild(kind: type[SteelyardError], hint: str, facts: dict[str, Any]) -> SteelyardError:
    return kind(hint=hint, **facts)


class _Facts(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return ""


class UsageError(SteelyardError):
    """{why}"""

    exit_code = 2
    code = "usage"
    hint = "see: steelyard --help"


class ConfigMissing(UsageError):
    """There is no config at {path}."""

    code = "config-missing"
    hint = "write a starter config with: steelyard init {path}"


class ConfigBroken(UsageError):
    """{path}: {key}: {why}"""

    code = "config"
    hint = "correct {key} in {path}"


class UnknownModel(UsageError):
    """No model is called {model!r}; the config names {known}."""

    code = "unknown-model"
    hint = "use one of the names, or add [models.{model}] to the config"


class UnknownCopy(UsageError):
    """No copy is called {copy!r}; there are {known}."""

    code = "unknown-copy"
    hint = "use one of the names, or add [replicas.{copy}] to the config"


class LockMismatch(UsageError):
    """{model}: {why}"""

    code = "lock-mismatch"
    hint = "run: steelyard update {model}"


class NotWhole(SteelyardError):
    """{why}"""

    exit_code = 1
    code = "not-whole"
    hint = "see what is held and how it is with: steelyard status"


class Missing(NotWhole):
    """{path} is not there."""

    code = "missing"
    hint = "see what is held and where with: steelyard status"


class Corrupt(NotWhole):
    """{path} is corrupt: {why}"""

    code = "corrupt"
    hint = "mend it from another copy with: steelyard repair"
    ranges: tuple[Range, ...] = ()


class SourceRotten(Corrupt):
    """{path} is corrupt ({why}), so nothing was carried to {target}."""

    code = "source-corrupt"
    hint = "mend what was read from first with: steelyard repair"


class Unreadable(NotWhole):
    """{path} can't be read: {why}"""

    code = "unreadable"
    hint = "look at the drive's health (dmesg, smartctl), then run: steelyard repair"
    ranges: tuple[Range, ...] = ()


class WrongType(NotWhole):
    """{path} is not a regular file."""

    code = "wrong-type"
    hint = "put a file in its place, or name another"


class Unproven(NotWhole):
    """{path}: no recorded digest can judge it."""

    code = "unverified"
    hint = "what was agreed on is recorded by: steelyard download, or steelyard adopt"


class BadRecord(NotWhole):
    """{path} can't be relied on: {why}"""

    code = "bad-record"
    sealed: bool = False
    """Its own digest is right, what it says is not: nobody's accident."""
    hint = "take it back from git or from a replica; what it describes was not touched"


class TooFewCopies(NotWhole):
    """{model}: {held} whole on separate devices{shared}, {wanted} are asked for (min_copies)."""

    code = "too-few-copies"
    hint = "bring the missing replica up to date with: steelyard backup {model}"


class NotLoadable(NotWhole):
    """{path} does not load: {why}"""

    code = "not-loadable"
    hint = "see what is in it with: steelyard inspect {path}"
    reason: str = ""


class Untrusted(NotWhole):
    """{path} is not taken: {why}"""

    code = "untrusted"
    hint = "see what is in it with: steelyard inspect {path}"


class Refused(SteelyardError):
    """{why}"""

    exit_code = 3
    code = "refused"
    hint = "nothing was changed; put that right and run the same command again"


class NoSpace(Refused):
    """{place} has {free} free, {need} are needed: {short} more must be made free."""

    code = "no-space"
    hint = "see what may go with: steelyard clean"


class MountAbsent(Refused):
    """{why}"""

    code = "mount-absent"
    hint = "plug in and mount the drive, then run the same command again"


class ReadOnly(Refused):
    """{place} can't be written: {why}"""

    code = "read-only"
    hint = "check the mount's options and the folder's permissions"


class OutsideHours(Refused):
    """{why}"""

    code = "outside-window"
    hint = "the next round within its hours goes on from here"


class Busy(Refused):
    """{what} is locked by {holder}."""

    code = "locked"
    hint = "wait for that run to end, or stop it"


class UnsafeName(Refused):
    """The name {name!r} would not stay inside {root}: {why}"""

    code = "unsafe-name"
    hint = "nothing was written; whoever gave that name must choose another"


class OtherSide(SteelyardError):
    """{who}: {why}"""

    exit_code = 4
    code = "other-side"
    hint = "run the same command again later; what is held is as it was"


class Unreachable(OtherSide):
    """{who} can't be reached: {why}"""

    code = "unreachable"
    transient = True
    hint = "check the network and run the same command again; what has arrived is kept"
    retry_after_s: float | None = None
    endured: bool = False
    """It was waited out for as long as the config's patience lasts: by hand there is no use in beginning again at once."""


class AccessDenied(OtherSide):
    """{who} denies access: {why}"""

    code = "access-denied"
    hint = "check the credentials and what they allow, then run the same command again"


class Gone(OtherSide):
    """{who}: {why}"""

    code = "gone"
    hint = "check the name and the revision; what is held is as it was"


class Archived(OtherSide):
    """{who}: {what}; {when}"""

    code = "archived"
    hint = "run the same command again then"
    ready_at: str = ""
    """When it is usually back, ISO 8601 in UTC; "" where that is unknown."""


class BadAnswer(OtherSide):
    """{who} gave an answer that can't be used: {why}"""

    code = "bad-answer"
    hint = "run the same command again later; if it stays so, look at what answers there"


class Stopped(SteelyardError):
    """Stopped; run the same command again and it goes on from here."""

    exit_code = 130
    code = "stopped"
    hint = "run the same command again"


def worst(codes: Iterable[int]) -> int:
    """The exit code of several outcomes: the smallest that is not zero, else zero (CONTRACT.md)."""
    return min((code for code in codes if code), default=0)
