"""One bucket, asked through boto3: every call, every error of botocore mapped to ours, retries above botocore's own. boto3 is imported here only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from steelyard.config import S3Config
from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Refused, SteelyardError, Unreachable
from steelyard.names import slug
from steelyard.watch import Watch, current_watch
from steelyard.weather import Patience, Reaction, Trouble

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PATIENCE_S = 150.0
"""How long one call waits out bad weather since its last progress [s]."""
CONNECT_S, SILENCE_S = 10.0, 30.0

Kind = Literal["missing", "no-upload", "conflict", "damaged", "unsupported", "range", "bad-part", "archived"]
KINDS: dict[str, Kind] = {
    "NoSuchKey": "missing",
    "NotFound": "missing",
    "404": "missing",
    "NoSuchVersion": "missing",
    "NoSuchUpload": "no-upload",
    "PreconditionFailed": "conflict",
    "412": "conflict",
    "ConditionalRequestConflict": "conflict",
    "OperationAborted": "conflict",
    "BadDigest": "damaged",
    "InvalidDigest": "damaged",
    "XAmzContentChecksumMismatch": "damaged",
    "XAmzContentSHA256Mismatch": "damaged",
    "NotImplemented": "unsupported",
    "501": "unsupported",
    "MethodNotAllowed": "unsupported",
    "405": "unsupported",
    "InvalidRange": "range",
    "416": "range",
    "InvalidPart": "bad-part",
    "InvalidPartOrder": "bad-part",
    "EntityTooSmall": "bad-part",
    "InvalidObjectState": "archived",
}
WEATHER_CODES = frozenset(
    {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"}
    | {"RequestThrottled", "IncompleteBody", "BandwidthLimitExceeded", "TooManyRequestsException", "RequestLimitExceeded", "Busy"}
)
WEATHER_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
DENIED: dict[str, tuple[str, str]] = {
    "InvalidAccessKeyId": ("it does not know this access key", "check AWS_ACCESS_KEY_ID or the profile (AWS_PROFILE)"),
    "SignatureDoesNotMatch": (
        "the secret key is not the one of this access key",
        "check AWS_SECRET_ACCESS_KEY or the profile (AWS_PROFILE)",
    ),
    "ExpiredToken": ("the credentials have expired", "renew them (aws sso login, or a new session token) and run the same command again"),
    "ExpiredTokenException": (
        "the credentials have expired",
        "renew them (aws sso login, or a new session token) and run the same command again",
    ),
    "TokenRefreshRequired": ("the credentials have expired", "renew them and run the same command again"),
    "InvalidToken": ("the session token is not valid", "renew the credentials, or unset AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (
        "this machine's clock differs from its clock by more than it allows",
        "set the clock: timedatectl set-ntp true",
    ),
    "RequestExpired": ("this machine's clock differs from its clock by more than it allows", "set the clock: timedatectl set-ntp true"),
}
WRONG_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"})
FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageQuotaExceeded", "507"})


class Told(Exception):
    """An answer that the caller said it would decide on; never leaves the S3 copy."""

    def __init__(self, kind: Kind, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.kind = kind
        self.code = code


class Bucket:
    """The bucket of one replica. Safe from any thread; connects at the first call.

    *requests* counts what was asked, by operation; retries inside botocore are not seen.
    """

    def __init__(self, name: str, settings: S3Config, *, patience_s: float = PATIENCE_S) -> None:
        self.name = settings.bucket
        self.settings = settings
        self.patience_s = patience_s
        self.endpoint = without_secrets(settings.endpoint_url) if settings.endpoint_url else ""
        self.who = f"{name} (s3://{settings.bucket}{f' at {self.endpoint}' if self.endpoint else ''})"
        self.requests: Counter[str] = Counter()
        self._client: S3Client | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Bucket({self.who})"

    @property
    def identity(self) -> str:
        """Names this bucket in file names of ours."""
        return slug(f"{self.endpoint or 'aws'}-{self.name}")

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

        :raises Told: for the kinds of answer in *expect*. :raises OtherSide, Refused: for all others. :raises Stopped:
        """
        watch = watch or current_watch()
        patience = Patience(self.patience_s if patience_s is None else patience_s)
        while True:
            watch.check()
            with self._lock:
                self.requests[operation] += 1
            try:
                with self.errors(expect):
                    answer: dict[str, Any] = getattr(self.client(), operation)(Bucket=self.name, **parameters)
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

    @contextmanager
    def errors(self, expect: Collection[Kind] = ()) -> Iterator[None]:
        """Map botocore's errors, and urllib3's while a body is read; the only place that does.

        :raises Told: for what is in *expect*, and for "damaged" (call() tries again).
        """
        from botocore import exceptions as theirs
        from botocore.parsers import ResponseParserError
        from urllib3 import exceptions as wire

        try:
            yield
        except theirs.ClientError as error:
            raise self._answered(error.response, expect) from error
        except (theirs.NoCredentialsError, theirs.PartialCredentialsError, theirs.CredentialRetrievalError) as error:
            hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run: aws configure"
            raise AccessDenied(who=self.who, why="there are no credentials for it", hint=hint) from error
        except (theirs.ProfileNotFound, theirs.TokenRetrievalError, theirs.SSOError) as error:
            raise AccessDenied(who=self.who, why=str(error), hint="check AWS_PROFILE, or run: aws sso login") from error
        except theirs.SSLError as error:
            hint = "set ca_bundle of this replica to the certificate authority of the store"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise BadAnswer(who=self.who, why="its certificate is not one that this machine trusts", hint=hint) from error
            raise Unreachable(who=self.who, why="TLS failed") from error
        except (theirs.EndpointConnectionError, theirs.ConnectTimeoutError, theirs.ProxyConnectionError) as error:
            raise Unreachable(who=self.who, why="no connection (refused, DNS or time-out)") from error
        except theirs.ReadTimeoutError as error:
            raise Unreachable(who=self.who, why=f"silence for {SILENCE_S:.0f} s") from error
        except (theirs.HTTPClientError, theirs.ResponseStreamingError, theirs.IncompleteReadError, wire.HTTPError, OSError) as error:
            raise Unreachable(who=self.who, why="the connection broke") from error
        except ResponseParserError as error:
            raise Unreachable(who=self.who, why="its answer is not readable XML") from error
        except (theirs.ParamValidationError, theirs.InvalidRegionError, ValueError) as error:
            hint = "correct bucket, region and endpoint_url of this replica in the config"
            raise Refused(why=f"{self.who}: the settings can't be used: {str(error).splitlines()[0]}", hint=hint) from error
        except theirs.BotoCoreError as error:
            raise OtherSide(who=self.who, why=f"{type(error).__name__}: {str(error).splitlines()[0]}") from error

    def _answered(self, response: Any, expect: Collection[Kind]) -> Exception:
        error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        code, status = str(error.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
        message = str(error.get("Message", ""))
        kind = KINDS.get(code) or KINDS.get(str(status)) if code != "NoSuchBucket" else None
        if kind is not None and (kind in expect or kind == "damaged"):
            return Told(kind, code, message)
        return self._mapped(code, status, message, meta.get("HTTPHeaders", {}))

    def _mapped(self, code: str, status: int, message: str, headers: Any) -> SteelyardError:
        who, said = self.who, f"{code or status}{f': {message}' if message else ''}"
        if code in {"NoSuchBucket", "AllAccessDisabled"}:
            return Gone(who=who, why=f"the bucket {self.name} is not there", hint="make the bucket, or correct bucket in the config")
        if code in WRONG_REGION or status in {301, 307}:
            region = headers.get("x-amz-bucket-region", "")
            hint = f'set region = "{region}" for this replica' if region else "set region (or endpoint_url) of this replica to the bucket's"
            return Refused(why=f"{who}: the bucket is in another region{f', {region}' if region else ''}", hint=hint)
        if code in DENIED:
            why, hint = DENIED[code]
            return AccessDenied(who=who, why=why, hint=hint)
        if code in FULL or status == 507:
            return Refused(why=f"{who}: the store is full ({said})", hint="make room there, or raise the quota")
        if code in WEATHER_CODES or status in WEATHER_STATUS:
            wait = str(headers.get("retry-after", ""))
            return Unreachable(who=who, why=f"it says {said}", retry_after_s=float(wait) if wait.isdigit() else None)
        if status in {401, 403}:
            return AccessDenied(who=who, why=f"it forbids this ({said})", hint="allow the actions that the README lists for this bucket")
        if status in {404, 410}:
            return Gone(who=who, why=said)
        return BadAnswer(who=who, why=said)

    def client(self) -> S3Client:
        """The boto3 client; made once. Call only inside errors()."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> S3Client:
        import boto3.session
        from botocore.config import Config

        from steelyard import __version__

        settings = self.settings
        session = boto3.session.Session()
        path_style = settings.path_style if settings.path_style is not None else settings.endpoint_url is not None
        return session.client(
            "s3",
            endpoint_url=settings.endpoint_url,
            # A region must be named to sign; stores of one's own take any, and this is what they call it.
            region_name=settings.region or session.region_name or "us-east-1",
            verify=str(settings.ca_bundle) if settings.ca_bundle else None,
            config=Config(
                s3={
                    "addressing_style": "path" if path_style else "auto",
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
                user_agent_extra=f"steelyard/{__version__}",
            ),
        )


def without_secrets(url: str) -> str:
    """*url* without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
