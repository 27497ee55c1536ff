"""botocore's errors as ours: the only place that knows them, and a test tells when it grows a new one."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from steelyard.errors import AccessDenied, BadAnswer, Gone, OtherSide, Refused, SteelyardError, Unreachable

SILENCE_S = 30.0
"""Longest silence of a connection [s]."""

Kind = Literal["missing", "no-upload", "conflict", "damaged", "unsupported", "range", "bad-part", "archived", "under-way"]
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
    "RestoreAlreadyInProgress": "under-way",
    "ObjectLockConfigurationNotFoundError": "missing",
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


@contextmanager
def mapped_errors(who: str, bucket: str, expect: Collection[Kind]) -> Iterator[None]:
    """Map botocore's errors, and urllib3's while a body is read; the only place that does.

    :raises Told: for what is in *expect*, and for "damaged" (call() tries again).
    """
    from botocore import exceptions as theirs
    from botocore.parsers import ResponseParserError
    from urllib3 import exceptions as wire

    try:
        yield
    except theirs.ClientError as error:
        raise _answered(who, bucket, error.response, expect) from error
    except (theirs.NoCredentialsError, theirs.PartialCredentialsError, theirs.CredentialRetrievalError) as error:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run: aws configure"
        raise AccessDenied(who=who, why="there are no credentials for it", hint=hint) from error
    except (theirs.ProfileNotFound, theirs.TokenRetrievalError, theirs.SSOError) as error:
        raise AccessDenied(who=who, why=str(error), hint="check AWS_PROFILE, or run: aws sso login") from error
    except theirs.SSLError as error:
        hint = "set ca_bundle of this replica to the certificate authority of the store"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise BadAnswer(who=who, why="its certificate is not one that this machine trusts", hint=hint) from error
        raise Unreachable(who=who, why="TLS failed") from error
    except (theirs.EndpointConnectionError, theirs.ConnectTimeoutError, theirs.ProxyConnectionError) as error:
        raise Unreachable(who=who, why="no connection (refused, DNS or time-out)") from error
    except theirs.ReadTimeoutError as error:
        raise Unreachable(who=who, why=f"silence for {SILENCE_S:.0f} s") from error
    except (theirs.HTTPClientError, theirs.ResponseStreamingError, theirs.IncompleteReadError, wire.HTTPError, OSError) as error:
        raise Unreachable(who=who, why="the connection broke") from error
    except ResponseParserError as error:
        raise Unreachable(who=who, why="its answer is not readable XML") from error
    except (theirs.ParamValidationError, theirs.InvalidRegionError, ValueError) as error:
        hint = "correct bucket, region and endpoint_url of this replica in the config"
        raise Refused(why=f"{who}: the settings can't be used: {str(error).splitlines()[0]}", hint=hint) from error
    except theirs.BotoCoreError as error:
        raise OtherSide(who=who, why=f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _answered(who: str, bucket: str, response: Any, expect: Collection[Kind]) -> Exception:
    error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
    code, status = str(error.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
    message = str(error.get("Message", ""))
    kind = KINDS.get(code) or KINDS.get(str(status)) if code != "NoSuchBucket" else None
    if kind is not None and (kind in expect or kind == "damaged"):
        return Told(kind, code, message)
    return _mapped(who, bucket, code, status, message, meta.get("HTTPHeaders", {}))


def _mapped(who: str, bucket: str, code: str, status: int, message: str, headers: Any) -> SteelyardError:
    said = f"{code or status}{f': {message}' if message else ''}"
    if code in {"NoSuchBucket", "AllAccessDisabled"}:
        return Gone(who=who, why=f"the bucket {bucket} is not there", hint="make the bucket, or correct bucket in the config")
    if code in WRONG_REGION or status in {301, 307}:
        region = headers.get("x-amz-bucket-region", "")
        hint = f'set region = "{region}" for this replica' if region else "set region (or endpoint_url) of this replica to the bucket's"
        return OtherSide(who=who, why=f"the bucket is in another region{f', {region}' if region else ''}", hint=hint)
    if code in DENIED:
        why, hint = DENIED[code]
        return AccessDenied(who=who, why=why, hint=hint)
    if code.startswith("KMS."):
        hint = "check sse_kms_key_id of this replica, and that the credentials may use that key (kms:GenerateDataKey, kms:Decrypt)"
        return AccessDenied(who=who, why=f"its encryption key can't be used ({said})", hint=hint)
    if code == "InvalidStorageClass":
        return Refused(why=f"{who}: it has no such storage class", hint="correct storage_class of this replica in the config")
    if code == "InvalidRequest" and "lock" in message.lower():
        hint = "object lock can only be had for a bucket that was made with it; make one, or leave object_lock_days out"
        return Refused(why=f"{who}: the bucket has no object lock ({message})", hint=hint)
    if code in FULL or status == 507:
        return Refused(why=f"{who}: the store is full ({said})", hint="make room there, or raise the quota")
    if code in WEATHER_CODES or status in WEATHER_STATUS:
        wait = str(headers.get("retry-after", ""))
        return Unreachable(who=who, why=f"it says {said}", retry_after_s=float(wait) if wait.isdigit() else None)
    if status in {401, 403}:
        return AccessDenied(
            who=who, why=f"it forbids this ({said})", hint="allow the actions that docs/s3.md lists for this bucket (Least power)"
        )
    if status in {404, 410}:
        return Gone(who=who, why=said)
    return BadAnswer(who=who, why=said)
