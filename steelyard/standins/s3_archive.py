"""What an archive before an S3 server says of the objects that lie in it, and what it takes and refuses while they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steelyard.standins.s3_wire import Seen, Stream


@dataclass
class Archived:
    """Objects with *key* in theirs that lie in an archive. *state*: asleep, then ongoing once asked back, and awake when a test says so."""

    key: str
    storage_class: str
    state: Literal["asleep", "ongoing", "awake"] = "asleep"
    asked: int = 0

    @property
    def headers(self) -> bytes:
        restore = {
            "asleep": "",
            "ongoing": 'ongoing-request="true"',
            "awake": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"',
        }
        line = f"x-amz-restore: {restore[self.state]}\r\n" if self.state != "asleep" else ""
        return f"x-amz-storage-class: {self.storage_class}\r\n{line}".encode()

    def keeps(self, client: Stream, seen: Seen, length: int) -> bool:
        """Answer as an archive does, where it would not let the request through to the bytes."""
        code, status = "", 0
        if seen.method == "POST" and seen.query.startswith("restore"):
            seen.body = b"".join(client.body(length))
            self.asked += 1
            code, status = ("RestoreAlreadyInProgress", 409) if self.state == "ongoing" else ("", 202)
            if self.state == "asleep":
                self.state = "ongoing"
        elif seen.method == "GET" and not seen.query and self.state != "awake":
            code, status = "InvalidObjectState", 403
        if not status:
            return False
        seen.status = status
        body = f"<Error><Code>{code}</Code><Message>as it says</Message></Error>".encode() if code else b""
        client.send(b"HTTP/1.1 %d Archive\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        return True
