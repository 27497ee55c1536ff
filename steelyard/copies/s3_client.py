"""One bucket, asked through boto3, with retries above botocore's own. boto3 is imported here only, and at the first call."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from steelyard.config import S3Config
from steelyard.copies.s3_errors import SILENCE_S, Kind, Told, mapped_errors
from steelyard.errors import BadAnswer, OutsideHours, Unreachable
from steelyard.money import Shape
from steelyard.names import slug
from steelyard.pace import SlowBody, Throttle, Window
from steelyard.watch import Watch, current_watch
from steelyard.weather import Patience, Reaction, Trouble

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from mypy_boto3_s3.client import S3Client

PATIENCE_S = 150.0
"""How long one call waits out bad weather since its last progress [s]."""
CONNECT_S = 10.0

ANSWERS = {
    "create_multipart_upload": "UploadId",
    "upload_part": "ETag",
    "upload_part_copy": "CopyPartResult",
    "copy_object": "CopyObjectResult",
    "complete_multipart_upload": "ETag",
    "list_objects_v2": "IsTruncated",
    "list_parts": "IsTruncated",
    "list_multipart_uploads": "IsTruncated",
}
"""What is in every whole answer. botocore takes a body that was cut off for an empty one: a listing would then show an empty bucket."""


class Bucket:
    """The bucket of one replica. Safe from any thread; connects at the first call.

    *requests* counts what was asked, by operation, with every try of it; *bytes_up* and *bytes_down* the bodies of objects.
    *throttle* holds what is sent, and what is read back for a proof, to the pace of the config.
    """

    def __init__(self, name: str, settings: S3Config, *, patience_s: float = PATIENCE_S) -> None:
        self.name = settings.bucket
        self.settings = settings
        self.patience_s = patience_s
        self.endpoint = without_secrets(settings.endpoint_url) if settings.endpoint_url else ""
        self.who = f"{name} (s3://{settings.bucket}{f' at {self.endpoint}' if self.endpoint else ''})"
        self.requests: Counter[str] = Counter()
        self.hours: Window | None = None
        """A scheduled round sends nothing outside these hours; None: at any time."""
        self.bytes_up = 0
        self.bytes_down = 0
        self.throttle = Throttle(settings.bandwidth or 0)
        self._client: S3Client | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Bucket({self.who})"

    @property
    def identity(self) -> str:
        """Names this bucket in file names of ours."""
        return slug(f"{self.endpoint or 'aws'}-{self.name}")

    @property
    def shape(self) -> Shape:
        """What was asked and moved so far."""
        with self._lock:
            return Shape(Counter(self.requests), self.bytes_up, self.bytes_down)

    def check_hours(self) -> None:
        """:raises OutsideHours: when the hours of the round have ended."""
        if self.hours is not None and not self.hours.is_open(datetime.now()):
            raise OutsideHours(why=f"{self.who}: its hours ({self.hours}) have ended; the next round goes on from here")

    def asked(self, operation: str) -> None:
        """One more request was made."""
        with self._lock:
            self.requests[operation] += 1

    def came(self, count: int) -> None:
        """*count* more bytes of an object were read."""
        with self._lock:
            self.bytes_down += count

    def call(
        self,
        operation: str,
        *,
        expect: Collection[Kind] = (),
        watch: Watch | None = None,
        patience_s: float | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """One call of the S3 API on this bucket; weather is waited out, a body damaged on the way is sent again.

        "tried_again" in the answer tells that the store may have done it twice.

        :raises Told: for the kinds of answer in *expect*. :raises OtherSide, Refused: for all others. :raises Stopped:
        """
        watch = watch or current_watch()
        patience = Patience(self.patience_s if patience_s is None else patience_s)
        tries = 0
        while True:
            watch.check()
            self.asked(operation)
            try:
                with self.errors(expect):
                    tries += 1
                    asked = parameters | self._on_every(operation)
                    if self.throttle.bytes_per_s and "Body" in parameters:
                        asked["Body"] = SlowBody(parameters["Body"], self.throttle, watch)
                    if operation == "put_object" and not {"ContentMD5", "ChecksumCRC64NVME"} & parameters.keys():
                        # Every body is checked there; a bucket that locks its objects takes none without.
                        asked["ContentMD5"] = md5_of(parameters["Body"])
                    answer: dict[str, Any] = getattr(self.client(), operation)(Bucket=self.name, **asked)
                    if ANSWERS.get(operation, "ResponseMetadata") not in answer:
                        raise Unreachable(who=self.who, why="the answer ended early")
                    again = int(answer.get("ResponseMetadata", {}).get("RetryAttempts") or 0)
                    answer["tried_again"] = tries > 1 or again > 0
                    with self._lock:
                        self.requests[operation] += again
                        self.bytes_up += len(parameters.get("Body", b""))
                    return answer
            except Told as told:
                # A checksum that does not fit was damaged between us and the store: the same bytes are sent again.
                if told.kind in expect or told.kind != "damaged":
                    raise
                if not patience.endure(Trouble(Reaction("lie", what="damaged on the way")), watch):
                    raise BadAnswer(who=self.who, why=f"what we send arrives damaged, five times in a row ({told})") from told
            except Unreachable as error:
                if not patience.endure(Trouble(Reaction("weather", what=error.message), retry_after_s=error.retry_after_s), watch):
                    raise

    def _on_every(self, operation: str) -> dict[str, Any]:
        """Parameters of the config that go with each request that knows them."""
        if not self.settings.request_payer:
            return {}
        meta = self.client().meta
        shape = meta.service_model.operation_model(meta.method_to_api_mapping[operation]).input_shape
        return {"RequestPayer": self.settings.request_payer} if shape is not None and "RequestPayer" in shape.members else {}

    def errors(self, expect: Collection[Kind] = ()) -> AbstractContextManager[None]:
        """Around whatever talks to the store beyond call(), such as reading a body. :raises Told, OtherSide, Refused:"""
        return mapped_errors(self.who, self.name, expect)

    def client(self) -> S3Client:
        """The boto3 client; made once. Call only inside errors()."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> S3Client:
        import boto3.session
        import botocore.session
        from botocore.config import Config

        from steelyard import __version__
        from steelyard.copies.s3_pages import read_pages
        from steelyard.copies.s3_ranges import remember_requests

        settings = self.settings
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        session = boto3.session.Session(botocore_session=core)
        style: Literal["path", "virtual", "auto"] = "path" if settings.endpoint_url else "auto"
        if settings.path_style is not None:
            style = "path" if settings.path_style else "virtual"
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            # A region must be named to sign; stores of one's own take any, and this is what they call it.
            region_name=settings.region or session.region_name or "us-east-1",
            verify=str(settings.ca_bundle) if settings.ca_bundle else None,
            config=Config(
                s3={
                    "addressing_style": style,
                    # The store checks each body by its CRC-64; a SHA-256 of it for the signature would halve the speed.
                    "payload_signing_enabled": False,
                },
                # We send the checksum we want; boto3's own choice is a CRC-32 in a trailer, which many stores refuse.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "total_max_attempts": 2},
                connect_timeout=CONNECT_S,
                read_timeout=SILENCE_S,
                max_pool_connections=settings.connections + 2,
                tcp_keepalive=True,
                # botocore's own is put together anew for each request, which takes longer than to sign it.
                user_agent=f"Boto3/{boto3.__version__} Botocore/{botocore.__version__} steelyard/{__version__}",
            ),
        )
        _plain_bodies(client)
        remember_requests(client)
        read_pages(client)
        return client


def _loader(data_path: str | None) -> Loader:
    """botocore's own loader of API models; to know that there is an S3 it looks into each of its 900 folders, twice."""
    from botocore.loaders import create_loader

    loader = create_loader(data_path)
    loader.list_available_services = lambda type_name: [  # type: ignore[method-assign]
        folder.name for path in map(Path, loader.search_paths) if path.is_dir() for folder in path.iterdir()
    ]
    return loader


def _timestamp(value: str) -> datetime:
    """The time in an answer. botocore has dateutil guess at each, which is most of the reading of a long listing; stores write ISO 8601, or HTTP's."""
    from botocore.utils import parse_timestamp

    text, found = str(value), None
    with contextlib.suppress(ValueError):
        found = parsedate_to_datetime(text) if text.endswith("GMT") else datetime.fromisoformat(text)
    if found is not None and found.tzinfo is not None:
        return found
    guessed: datetime = parse_timestamp(value)
    return guessed


def _plain_bodies(client: S3Client) -> None:
    """Send bodies as they are. botocore makes files of them, read 16 KiB at a time, and asks with "Expect: 100-continue" whether they are welcome.

    That is a round trip for each part, and a whole second where a store or a proxy does not answer it.
    """
    from botocore import handlers

    client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
    for operation in ("UploadPart", "PutObject"):
        client.meta.events.unregister(f"before-parameter-build.s3.{operation}", handlers.convert_body_to_file_like_object)


def md5_of(body: bytes | bytearray) -> str:
    """As S3 wants it: base64."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def without_secrets(url: str) -> str:
    """*url* without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
