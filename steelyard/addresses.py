"""What a user writes for a file, as bytes that can be read by range: a path, hf://repo_id[@revision]/path, s3://bucket/key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from steelyard.config import HubConfig, ReplicaConfig, S3Config
from steelyard.copies.hub import HubFile
from steelyard.errors import Gone, UsageError
from steelyard.hub import Hub
from steelyard.line import Line
from steelyard.lock import LockedFile
from steelyard.source import ByteSource, LocalFile

if TYPE_CHECKING:
    from steelyard.copies.s3_client import Bucket

_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
_REVISION = re.compile(r"^(refs/(?:pr|convert)/[^/]+|[^/]+)/(.+)$")
HF_HINT = "write it as hf://org/name@revision/path/in/repo"
S3_HINT = "write it as s3://bucket/path/of/the/object"
PATIENCE_S = 20.0
"""How long a look into a bucket waits out bad weather: someone waits for the answer."""


class HubAddress(NamedTuple):
    repo_id: str
    revision: str
    path: str


@dataclass(frozen=True)
class Opened:
    """The bytes of one source. *beside* opens a file of its folder (a shard that an index names); None for a path, whose folder is at hand."""

    source: ByteSource
    beside: Callable[[str], ByteSource] | None = None
    hub: HubAddress | None = None
    """Where on the Hub it lies, its revision as the commit; None for a file or an object."""
    locked: LockedFile | None = None
    """What the Hub publishes of it."""


def open_address(text: str, settings: HubConfig, replicas: Mapping[str, ReplicaConfig], stack: ExitStack) -> Opened:
    """The bytes that *text* names; closed with *stack*.

    :raises UsageError: when it can't be an address. :raises Missing, WrongType, Unreadable: for a path. :raises OtherSide: for the rest.
    """
    if text.startswith("hf://"):
        return _on_hub(hub_address(text), settings, stack)
    if text.startswith("s3://"):
        return _in_bucket(text, replicas, stack)
    if "://" in text:
        raise UsageError(why=f"{text!r}: only paths, hf:// and s3:// can be looked into", hint="see: steelyard inspect --help")
    source = LocalFile(Path(text).expanduser())
    stack.callback(source.close)
    return Opened(source)


# --- the Hub


def hub_address(text: str) -> HubAddress:
    """Take hf://org/name[@revision]/path apart; refs/pr/1 and what is quoted (%2F) are revisions too. :raises UsageError:"""
    rest = text.removeprefix("hf://")
    kind = rest.partition("/")[0]
    if kind in {"datasets", "spaces"}:
        raise UsageError(why=f"{text!r}: only the Hub's models are looked into", hint=HF_HINT)
    rest = rest.removeprefix("models/") if rest.count("/") > 2 else rest
    repo_id, at, after = rest.partition("@")
    if at and "/" in after and repo_id.count("/") <= 1:
        match = _REVISION.match(after)
        revision, path = (unquote(match[1]), match[2]) if match else ("", "")
    else:
        parts = rest.split("/")
        owned = 2 if len(parts) > 2 else 1
        repo_id, revision, path = "/".join(parts[:owned]), "main", "/".join(parts[owned:])
    if not (repo_id.strip("/") == repo_id and repo_id and revision and path) or any(part in {"", ".", ".."} for part in path.split("/")):
        raise UsageError(why=f"{text!r} is not a Hub file", hint=HF_HINT)
    return HubAddress(repo_id, revision, path)


def _on_hub(address: HubAddress, settings: HubConfig, stack: ExitStack) -> Opened:
    hub = Hub(settings)
    listing = hub.listing(address.repo_id, address.revision)
    line = Line(hub.endpoint, address.repo_id, listing.commit, timeout_s=settings.timeout, connections=1)
    stack.callback(line.close)

    def look(path: str) -> tuple[HubFile, LockedFile]:
        file = next(iter(listing.matching([literal(path)])))
        return HubFile(lambda: [line], file, patience_s=settings.patience), file

    source, file = look(address.path)
    return Opened(source, lambda name: look(_beside(address.path, name))[0], address._replace(revision=listing.commit), file)


def _beside(path: str, name: str) -> str:
    folder = path.rpartition("/")[0]
    return f"{folder}/{name}" if folder else name


def literal(path: str) -> str:
    """*path* as a pattern that matches nothing but itself."""
    return re.sub(r"([\[*?])", r"[\1]", path)


# --- a bucket


def _in_bucket(text: str, replicas: Mapping[str, ReplicaConfig], stack: ExitStack) -> Opened:
    from steelyard.copies.s3_client import Bucket

    name, _, key = text.removeprefix("s3://").partition("/")
    if not _BUCKET.match(name) or not key or key.endswith("/") or "\0" in key:
        raise UsageError(why=f"{text!r} is not an object in a bucket", hint=S3_HINT)
    bucket = Bucket(*bucket_settings(name, key, replicas), patience_s=PATIENCE_S)

    return Opened(_object(bucket, key), lambda name: _object(bucket, _beside(key, name)))


def bucket_settings(bucket: str, key: str, replicas: Mapping[str, ReplicaConfig]) -> tuple[str, S3Config]:
    """(what to call it, how to reach it): as the replica in that bucket does, else as boto3 itself would, AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL too."""
    near = {name: one for name, one in replicas.items() if isinstance(one, S3Config) and one.bucket == bucket}
    if near:
        # Of several in one bucket, the one whose prefix the key has.
        return max(near.items(), key=lambda item: len(prefix) if key.startswith(prefix := item[1].prefix.strip("/")) else -1)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        return "S3", S3Config(kind="s3", bucket=bucket, endpoint_url=endpoint or None)
    except ValueError as error:
        raise UsageError(why=f"AWS_ENDPOINT_URL: {endpoint!r} is not an address", hint='write it as "https://host"') from error


def _object(bucket: Bucket, key: str) -> ByteSource:
    from steelyard.copies.s3_objects import head
    from steelyard.copies.s3_source import S3Source

    seen = head(bucket, key)
    if seen is None:
        # A HEAD has no body to say which of the two is not there; a bucket that is not there raises here.
        folder = key.rpartition("/")[0]
        answer = bucket.call("list_objects_v2", Prefix=f"{folder}/" if folder else "", MaxKeys=5)
        beside = ", ".join(str(one["Key"]) for one in answer.get("Contents", ()))
        hint = f"beside it lie {beside}" if beside else f"nothing lies below {folder!r} there"
        raise Gone(who=bucket.who, why=f"it has no object {key!r}", hint=hint)
    return S3Source(bucket, seen)
