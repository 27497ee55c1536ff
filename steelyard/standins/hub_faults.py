"""Faults of the stand-in Hub, as sentences: hub.faults.add("cdn", "reset after 1 MiB", times=3).

    503                                       any status, in the Hub's or the store's words; headers= adds to it
    429, retry after 7 s                      … as date: an HTTP date instead of seconds
    429, rate limit resets in 7 s             the RateLimit header instead of Retry-After
    close                                     the connection, before any header
    wait 2 s                                  before any header
    reset after 1 MiB                         TCP RST in mid-body; "reset@1MiB" says the same
    cut after 1 MiB                           clean close in mid-body
    stall 2 s after 1 MiB                     a pause in mid-body
    trickle at 64 KiB/s
    expire                                    every signed link given out so far; this request is refused by its own
    expire after 1 MiB                        the same in mid-body, and the connection is reset
    ignore range                              200 with the whole file
    shift range by 8                          206 whose Content-Range begins 8 bytes too far; bytes as asked for
    shift bytes by 8                          the right Content-Range over bytes that begin 8 too far
    wrong total by 8                          Content-Range and X-Linked-Size claim a file 8 bytes longer (-8: shorter)
    claim 10 bytes more | less                a wrong Content-Length; X-Linked-Size where there is a redirect
    flip byte 4096                            all bits of the byte at that offset of the file
    other bytes                               of the same size
    other etag
    gzip                                      Content-Encoding: gzip, chunked
    html | html as application/json           a captive portal's page with status 200
    garbage json
    huge json 100 MiB                         one document of that size

A fault counts as used only when it can show: a flip when the range holds the byte, a reset when the body is longer than that.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from steelyard.standins.hub_fault_words import Spoil, read
from steelyard.standins.hub_reply import Asked, Kind, Reply


@dataclass
class Fault:
    """A fault in the book. *times* None is for ever; *used* counts the replies it spoiled."""

    kind: Kind
    sentence: str
    spoil: Spoil
    times: int | None
    skip: int
    path: str | None
    method: str | None
    headers: Mapping[str, str]
    used: int = 0

    def fits(self, asked: Asked, reply: Reply) -> bool:
        if self.kind != asked.kind or (self.times is not None and self.used >= self.times):
            return False
        if self.method not in (None, asked.method):
            return False
        names = (*reply.names, asked.path)
        return self.path is None or any(fnmatchcase(name, self.path) for name in names)


@dataclass
class FaultBook:
    """The faults in force, applied in the order they were added; after one that replaces the whole answer no other is looked at."""

    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        kind: Kind,
        sentence: str,
        *,
        times: int | None = None,
        skip: int = 0,
        path: str | None = None,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Put *sentence* in force for requests of *kind*; the returned Fault counts.

        After *skip* replies that it could have spoiled it spoils the next *times*. *path* is a glob for the file's path in the repo,
        with or without the repo_id before it, or for the request's path; *method* limits it to GET, HEAD or POST.
        :raises ValueError: when the sentence is none.
        """
        fault = Fault(kind, sentence, read(sentence), times, skip, path, method, headers or {})
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def apply(self, asked: Asked, reply: Reply) -> Reply:
        with self._lock:
            for fault in self._faults:
                spoiled = fault.spoil(asked, reply) if fault.fits(asked, reply) else None
                if spoiled is None:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.used += 1
                reply = replace(spoiled, headers={**spoiled.headers, **fault.headers})
                if reply.injected:
                    break
        return reply
