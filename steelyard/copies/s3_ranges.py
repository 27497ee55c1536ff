"""Ranges of one object: the first is asked for through boto3, each further one is that request again with another range, signed anew.

boto3 takes 2 ms of one core to build a request and to read the answer's headers; a large file is read in thousands of ranges, several at once, and those
cores are wanted for TLS and for the proof. Whatever is not a plain 206 is asked for once more through boto3, which knows what it means and what to do.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steelyard.copies.s3_client import Bucket
from steelyard.errors import OtherSide, Refused
from steelyard.watch import Watch

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from urllib3 import BaseHTTPResponse

_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]+/\d{8}/(?P<region>[^/,]+)/s3/aws4_request")
_SIGNED_ANEW = frozenset({"authorization", "x-amz-date", "date", "x-amz-security-token", "x-amz-content-sha256", "range"})
_OF_ONE_TRY = frozenset({"amz-sdk-invocation-id", "amz-sdk-request", "host"})
_last = threading.local()
"""The request that boto3 sent last in this thread, and its signer."""


@dataclass(frozen=True)
class Sent:
    """A GET as boto3 sent it. *sign* makes a signer with the credentials as they are now: they are renewed while a long read runs."""

    url: str
    headers: dict[str, str]
    sign: Callable[[], Any]
    session: Any
    config: Any


class Ranges:
    """Ranges of one object. *parameters*: of each get_object beside the range. Safe from any thread."""

    def __init__(self, bucket: Bucket, parameters: dict[str, Any]) -> None:
        self._bucket = bucket
        self._parameters = parameters
        self._sent: Sent | None = None
        self._by_boto3_only = False

    def ask(self, first: int, last: int, watch: Watch, patience_s: float) -> tuple[BaseHTTPResponse, str]:
        """The body of an answer, unread, and its Content-Range. :raises Told: :raises OtherSide, Refused: as Bucket.call does"""
        wanted = f"bytes={first}-{last}"
        if self._sent is not None and not self._by_boto3_only:
            watch.check()
            answer = self._again(self._sent, wanted)
            if answer is not None:
                return answer, str(answer.headers.get("Content-Range", ""))
        told = self._bucket.call(
            "get_object",
            expect={"missing", "conflict", "range", "archived"},
            watch=watch,
            patience_s=patience_s,
            Range=wanted,
            **self._parameters,
        )
        self._sent = sent_last()
        # botocore's body makes a fresh object of every chunk; the answer below it is read straight into a buffer.
        body: BaseHTTPResponse = told["Body"]._raw_stream
        return body, str(told.get("ContentRange", ""))

    def _again(self, sent: Sent, wanted: str) -> BaseHTTPResponse | None:
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method="GET", url=sent.url, headers=sent.headers | {"Range": wanted}, stream_output=True)
        request.context["client_config"] = sent.config
        self._bucket.asked("get_object")
        try:
            with self._bucket.errors():
                sent.sign().add_auth(request)
                answer = sent.session.send(request.prepare())
        except (OtherSide, Refused):
            return None
        body: BaseHTTPResponse = answer.raw
        if answer.status_code == 206:
            return body
        body.close()
        # A store or a proxy that takes boto3's requests and not this one is not asked this way again.
        self._by_boto3_only = answer.status_code < 500
        return None


def sent_last() -> Sent | None:
    """What can be sent again of the last GET of this thread; None where it was not signed the plain way."""
    sent: Sent | None = getattr(_last, "sent", None)
    _last.sent = None
    return sent


def remember_requests(client: S3Client) -> None:
    """Note each GET of an object as *client* sends it, for sent_last()."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    if session is None:
        return  # another botocore than we know: all goes through it

    def signing(request_signer: Any, **_: Any) -> None:
        _last.signer = request_signer

    def sending(request: Any, **_: Any) -> None:
        headers = {
            name.lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value) for name, value in request.headers.items()
        }
        scope, signer = _SCOPE.match(headers.get("authorization", "")), getattr(_last, "signer", None)
        _last.sent = None
        if scope is None or signer is None or "x-amz-s3session-token" in headers:
            return
        region = scope["region"]
        kept = {name: value for name, value in headers.items() if name not in _SIGNED_ANEW | _OF_ONE_TRY}
        _last.sent = Sent(request.url, kept, lambda: signer.get_auth_instance("s3", region, "s3v4"), session, client.meta.config)

    client.meta.events.register("before-sign.s3.GetObject", signing)
    client.meta.events.register("before-send.s3.GetObject", sending)
