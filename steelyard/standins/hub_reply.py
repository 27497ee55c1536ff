"""One question to the stand-in Hub and the reply to it, before a fault has touched it and before it is sent."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from steelyard.standins.hub_data import Body, body_of

Kind = Literal["api", "resolve", "cdn"]
"""What a request is for; a fault is addressed by it. Everything that is not a file is "api"."""
Port = Literal["hub", "cdn"]


@dataclass(frozen=True)
class Asked:
    """A request. *headers* have lower-case names; *path* is as sent, still quoted, without the query."""

    port: Port
    method: str
    target: str
    headers: dict[str, str]
    payload: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def segments(self) -> list[str]:
        """The path's segments, unquoted one by one: a revision may hold a quoted slash."""
        return [unquote(segment) for segment in self.path.split("/") if segment]

    @property
    def query(self) -> dict[str, list[str]]:
        found = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        # Both spellings of a list are in use: expand=sha&expand=… and expand[]=formatted.
        return {key.removesuffix("[]"): values for key, values in found.items()}

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("true", "1", "")

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    @property
    def kind(self) -> Kind:
        if self.port == "cdn":
            return "cdn"
        return "resolve" if "resolve" in self.segments[1:3] and self.segments[0] != "api" else "api"


@dataclass(frozen=True)
class Mark:
    """What happens once *at_bytes* of the body are out: nothing further (reset, cut), or a pause of *pause_s*."""

    at_bytes: int
    act: Literal["reset", "cut", "pause", "expire"]
    pause_s: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What is to be sent. *names* are what a fault's glob is matched against; *marks* and the rest are put there by faults."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=lambda: body_of(b""))
    names: tuple[str, ...] = ()
    is_file: bool = False
    marks: tuple[Mark, ...] = ()
    bytes_per_s: float | None = None
    wait_s: float = 0.0
    silent: bool = False
    """Close the connection without a word."""
    gzip: bool = False
    expires: bool = False
    """Every signed link given out so far ends with this reply."""
    injected: bool = False
    """A fault put it in the place of the honest one."""

    def with_headers(self, **headers: str) -> Reply:
        return replace(self, headers=self.headers | {name.replace("_", "-"): value for name, value in headers.items()})

    def without(self, *names: str) -> Reply:
        return replace(self, headers={name: value for name, value in self.headers.items() if name not in names})


def plain_reply(status: int, data: bytes, content_type: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, {"Content-Type": content_type, **(headers or {})}, body_of(data))


def json_reply(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return plain_reply(status, json.dumps(document).encode(), "application/json; charset=utf-8", headers)


def error_reply(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """An error as the Hub words it: the real client decides by X-Error-Code, not by the status."""
    found = {"X-Error-Code": code} if code else {}
    return json_reply({"error": message}, status, {**found, "X-Error-Message": message, **(headers or {})})


def storage_error(status: int, code: str, message: str) -> Reply:
    """An error as an object store words it."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return plain_reply(status, text.encode(), "application/xml")


def file_reply(asked: Asked, body: Body, etag: str, headers: dict[str, str]) -> Reply:
    """The file, the asked range of it, or what the request's conditions make of it (304, 412, 416): RFC 9110, 13 and 14."""
    size = body.content.size_bytes
    quoted = f'"{etag}"'
    headers = {"ETag": quoted, "Accept-Ranges": "bytes", **headers}
    if (wanted := asked.headers.get("if-match")) and not _lists(wanted, quoted):
        return Reply(412, {"ETag": quoted})
    if (known := asked.headers.get("if-none-match")) and _lists(known, quoted):
        return Reply(304, {"ETag": quoted})
    span = byte_range(asked.range, size) if asked.method == "GET" else None
    if span is None or asked.headers.get("if-range", quoted) != quoted:
        return Reply(200, headers, body, is_file=True)
    start, stop = span
    if start >= stop:
        refused = plain_reply(416, b"Range Not Satisfiable", "text/plain", {"Content-Range": f"bytes */{size}"})
        return replace(refused, headers=refused.headers | {"ETag": quoted})
    return Reply(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}, body.part(start, stop), is_file=True)


def byte_range(text: str | None, size: int) -> tuple[int, int] | None:
    """The half-open range asked for; an empty one can't be satisfied; None: none asked for, not understood, or several (so: the whole)."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", text or "")
    if not found or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if first == "":
        return (max(0, size - int(last)), size) if int(last) else (size, size)
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1 if last else size)


def _lists(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag in [one.strip().removeprefix("W/") for one in condition.split(",")]
