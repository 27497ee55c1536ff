"""The words of the fault language (hub_faults.py): what each sentence does to a reply."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate

from steelyard.standins.hub_data import Body, Content, Edit
from steelyard.standins.hub_reply import Asked, Mark, Reply, error_reply, plain_reply, storage_error

Spoil = Callable[[Asked, Reply], Reply | None]
"""The spoiled reply, or None when the fault can't show in this one."""

PORTAL = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body><h1>Sign in to the network</h1></body></html>\n"
UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def read(sentence: str) -> Spoil:
    """What a sentence means. :raises ValueError: with the sentence, when it means nothing."""
    words = sentence.strip().lower().replace("@", " after ")
    for pattern, make in GRAMMAR:
        if found := re.fullmatch(pattern, words):
            return make(*found.groups())
    raise ValueError(f"no fault reads {sentence!r}; see steelyard.standins.hub_faults")


def size(text: str) -> int:
    found = re.fullmatch(r"(-?\d+) ?([a-z]*)", text.strip())
    if not found or found.group(2) not in UNITS:
        raise ValueError(f"not a size: {text!r}")
    return int(found.group(1)) * UNITS[found.group(2)]


# ---- faults that take the place of the answer


def _instead(make: Callable[[Asked], Reply]) -> Spoil:
    return lambda asked, _: replace(make(asked), injected=True)


def _refusal(asked: Asked, status: int) -> Reply:
    if asked.kind == "cdn":
        return storage_error(status, "AccessDenied" if status == 403 else "InternalError", f"injected {status}")
    return error_reply(status, "", f"injected {status}")


def _status(code: str) -> Spoil:
    return _instead(lambda asked: _refusal(asked, int(code)))


def _later(code: str, seconds: str, as_date: str | None) -> Spoil:
    def make(asked: Asked) -> Reply:
        value = formatdate(time.time() + float(seconds), usegmt=True) if as_date else seconds
        return _refusal(asked, int(code)).with_headers(Retry_After=value)

    return _instead(make)


def _rate_limit(code: str, seconds: str) -> Spoil:
    policy = '"fixed window";"api";q=500;w=300'
    return _instead(lambda asked: _refusal(asked, int(code)).with_headers(RateLimit=f'"api";r=0;t={seconds}', RateLimit_Policy=policy))


def _close() -> Spoil:
    return lambda _, reply: replace(reply, silent=True, injected=True)


def _expired() -> Spoil:
    return _instead(lambda _: replace(storage_error(403, "AccessDenied", "Request has expired"), expires=True))


def _page(content_type: str | None) -> Spoil:
    return _instead(lambda _: plain_reply(200, PORTAL, content_type or "text/html; charset=utf-8"))


def _garbage() -> Spoil:
    return _instead(lambda _: plain_reply(200, b'{"id": "x", "siblings": [{"rfilename": \xff', "application/json"))


def _huge(text: str) -> Spoil:
    total = size(text)

    def filling(offset: int, chunk: bytearray) -> None:
        chunk[:] = b"x" * len(chunk)
        if offset == 0:
            chunk[:7] = b'{"id":"'
        if offset + len(chunk) == total:
            chunk[-2:] = b'"}'

    return _instead(lambda _: Reply(200, {"Content-Type": "application/json"}, Body(Content(b""), 0, total, (filling,))))


# ---- faults of the way


def _mark(mark: Mark) -> Spoil:
    def spoil(asked: Asked, reply: Reply) -> Reply | None:
        if asked.method == "HEAD" or len(reply.body) <= mark.at_bytes:
            return None
        return replace(reply, marks=(*reply.marks, mark))

    return spoil


# ---- faults of a file's headers and bytes


def _file(change: Callable[[Reply], Reply | None], *, head: bool = False) -> Spoil:
    """A fault that shows only where a file's bytes are sent, and with *head* in the reply to HEAD too."""
    return lambda asked, reply: change(reply) if reply.is_file and (head or asked.method != "HEAD") else None


def _span(reply: Reply) -> tuple[int, int, int] | None:
    """First, last and total of a Content-Range."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    return (int(found.group(1)), int(found.group(2)), int(found.group(3))) if found else None


def _shift_range(text: str) -> Spoil:
    def change(reply: Reply) -> Reply | None:
        if not (span := _span(reply)):
            return None
        first, last, total = span
        return reply.with_headers(Content_Range=f"bytes {first + size(text)}-{last + size(text)}/{total}")

    return _file(change)


def _wrong_total(text: str) -> Spoil:
    def spoil(_asked: Asked, reply: Reply) -> Reply | None:
        if span := _span(reply):
            return reply.with_headers(Content_Range=f"bytes {span[0]}-{span[1]}/{span[2] + size(text)}")
        if linked := reply.headers.get("X-Linked-Size"):
            return reply.with_headers(X_Linked_Size=str(int(linked) + size(text)))
        return None

    return spoil


def _claim(text: str, direction: str) -> Spoil:
    def spoil(_asked: Asked, reply: Reply) -> Reply | None:
        more = size(text) if direction == "more" else -size(text)
        if linked := reply.headers.get("X-Linked-Size"):
            return reply.with_headers(X_Linked_Size=str(int(linked) + more))
        return reply.with_headers(Content_Length=str(max(0, len(reply.body) + more)))

    return spoil


def _shift_bytes(text: str) -> Spoil:
    def change(reply: Reply) -> Reply | None:
        start = reply.body.start + size(text)
        return replace(reply, body=replace(reply.body, start=start, stop=start + len(reply.body))) if start >= 0 else None

    return _file(change)


def _ignore_range() -> Spoil:
    def change(reply: Reply) -> Reply | None:
        if reply.status != 206:
            return None
        whole = replace(reply.body, start=0, stop=reply.body.content.size_bytes)
        return replace(reply.without("Content-Range"), status=200, body=whole)

    return _file(change)


def _edited(reply: Reply, edit: Edit) -> Reply:
    return replace(reply, body=replace(reply.body, edits=(*reply.body.edits, edit)))


def _flip(text: str) -> Spoil:
    at = size(text)

    def edit(offset: int, chunk: bytearray) -> None:
        if offset <= at < offset + len(chunk):
            chunk[at - offset] ^= 0xFF

    def change(reply: Reply) -> Reply | None:
        return _edited(reply, edit) if reply.body.start <= at < reply.body.stop else None

    return _file(change)


def _other_bytes() -> Spoil:
    noise = random.Random(0).randbytes(1 << 16)  # noqa: S311 - noise, not secrets
    table = bytes(byte ^ 0x5A for byte in range(256))

    def edit(offset: int, chunk: bytearray) -> None:
        # By absolute offset, so that every range of the other file is the same one.
        begin = offset % len(noise)
        times = -(-(begin + len(chunk)) // len(noise))
        chunk[:] = (noise * times)[begin : begin + len(chunk)].translate(table)

    return _file(lambda reply: _edited(reply, edit))


def _other_etag() -> Spoil:
    def spoil(_asked: Asked, reply: Reply) -> Reply | None:
        found = {name: value for name, value in reply.headers.items() if name in ("ETag", "X-Linked-Etag")}
        turned = {name: '"' + value.strip('"')[::-1] + '"' for name, value in found.items()}
        return replace(reply, headers=reply.headers | turned) if found else None

    return spoil


SIZE = r"(-?\d+ ?[kmg]?i?b?|\d+ bytes?)"
SECONDS = r"(\d+(?:\.\d+)?) ?s"
GRAMMAR: tuple[tuple[str, Callable[..., Spoil]], ...] = (
    (r"(\d{3})", _status),
    (rf"(\d{{3}}),? retry after {SECONDS}( as date)?", _later),
    (r"(\d{3}),? rate limit resets in (\d+) ?s", _rate_limit),
    (r"close", _close),
    (rf"wait {SECONDS}", lambda seconds: lambda _asked, reply: replace(reply, wait_s=float(seconds))),
    (rf"reset after {SIZE}", lambda text: _mark(Mark(size(text), "reset"))),
    (rf"cut after {SIZE}", lambda text: _mark(Mark(size(text), "cut"))),
    (rf"stall {SECONDS} after {SIZE}", lambda seconds, text: _mark(Mark(size(text), "pause", float(seconds)))),
    (rf"trickle at {SIZE}/s", lambda text: lambda _asked, reply: replace(reply, bytes_per_s=float(size(text)))),
    (r"expire", _expired),
    (rf"expire after {SIZE}", lambda text: _mark(Mark(size(text), "expire"))),
    (r"ignore range", _ignore_range),
    (rf"shift range by {SIZE}", _shift_range),
    (rf"shift bytes by {SIZE}", _shift_bytes),
    (rf"wrong total by {SIZE}", _wrong_total),
    (rf"claim {SIZE} (more|less)", _claim),
    (rf"flip byte {SIZE}", _flip),
    (r"other bytes", _other_bytes),
    (r"other etag", _other_etag),
    (r"gzip", lambda: _file(lambda reply: replace(reply, gzip=True))),
    (r"html(?: as ([a-z0-9/+.-]+))?", _page),
    (r"garbage json", _garbage),
    (rf"huge json {SIZE}", _huge),
)
