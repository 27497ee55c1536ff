"""steelyard.toml + environment -> frozen settings: models, store, replicas.

Any value can come from the environment as STEELYARD_STORE__MODELS and so on; the environment wins over the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from steelyard.config_s3 import S3Config
from steelyard.errors import ConfigBroken, ConfigMissing, UnknownModel, UnsafeName
from steelyard.money import Prices
from steelyard.names import OURS, check_name
from steelyard.units import AbsolutePath, Duration, Part, Percent, Size, Texts, Url, Wrong, listed, parse_duration, parse_size

__all__ = ["Config", "HubConfig", "MountConfig", "S3Config", "config_path", "load_config", "parse_duration", "parse_size"]

DEFAULT_PATH = Path("steelyard.toml")
PREFIX = "STEELYARD_"
"""Of the variables that stand for keys of the config."""

Views = Literal["copy", "reflink", "hardlink", "auto"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StoreConfig(Part):
    models: AbsolutePath
    """Where programs look for weights."""
    hf_home: AbsolutePath
    """HF_HOME; the hub cache is hf_home/hub."""
    outputs: AbsolutePath | None = None
    min_free: Size = 15 * 1000**3
    """Free space that a download must leave; the plan's own need is added."""
    views: Views = "copy"
    """How the store and the hub cache share bytes."""
    keep_quarantine: Duration = 30 * 86400.0
    """How long bytes that were set aside stay before `clean` names them."""

    @property
    def hub_cache(self) -> Path:
        return self.hf_home / "hub"

    @property
    def ours(self) -> Path:
        """Our own records and staging; on the drive of the models, so that publishing is a rename."""
        return self.models / OURS


class CleanConfig(Part):
    outputs: Texts = ()
    """Patterns (fnmatch, below store.outputs) of what `clean` may name once it is old: "old_*"."""
    outputs_older_than: Duration = 30 * 86400.0
    """How long nothing in it may have changed."""
    keep_revisions: Annotated[int, Field(ge=1)] = 2
    """Older revisions that stay in the store and the hub cache beside the current one; more stay where no replica is proven to hold them."""
    xet_cache: Size = 10 * 1000**3
    """Budget of hf_home/xet; what was not used for longest goes first."""
    pip_cache: bool = False
    """Whether `clean` names pip's cache too."""

    @model_validator(mode="after")
    def _below_outputs(self) -> Self:
        for pattern in self.outputs:
            if pattern.startswith("/") or {"", ".", "..", "*", "**"} & set(pattern.split("/")[-1:]) or ".." in pattern.split("/"):
                raise Wrong("outputs", f'{pattern!r} names too much or lies outside; write patterns like "old_*" or "*/old_*"')
        return self


class DiskConfig(Part):
    """When a file system that holds anything of ours is too full: see steelyard.disk_watch."""

    warn_free: Size = 25 * 1000**3
    """Free space below which a warning is given."""
    error_free: Size = 15 * 1000**3
    """Free space below which it is an error."""
    warn_days: Duration = 14 * 86400.0
    """A warning is given when the trend fills the disk within this time [s]."""
    warn_inodes: Annotated[float, Field(ge=0, le=100)] = 5.0
    """A warning is given when fewer inodes are free [percent]; an error at a fifth of that."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warn_free < self.error_free:
            raise Wrong("warn_free", "must not be smaller than error_free")
        return self


class HubConfig(Part):
    endpoint: Url = "https://huggingface.co"
    """HF_ENDPOINT wins."""
    mirrors: Annotated[tuple[Url, ...], BeforeValidator(listed)] = ()
    """Further endpoints that bytes, never digests, may come from."""
    connections: Annotated[int, Field(ge=1, le=32)] = 4
    """Ranges of one file fetched at once."""
    timeout: Annotated[Duration, Field(gt=0)] = 20.0
    """Longest silence of a connection [s]."""
    webhook_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Where `steelyard up` listens for the Hub's webhooks; their secret is in STEELYARD_WEBHOOK_SECRET."""
    webhook_host: str = "127.0.0.1"
    patience: Duration = 120.0
    """How long a download waits out bad weather by itself before it gives up [s]."""
    prefer_replicas: bool = False
    """Take a download's bytes from a replica that has them, and only the rest from the Hub; proven by the lock's digests all the same."""
    scan_gate: Literal["off", "warn", "refuse"] = "warn"
    """What a download or an update does where the Hub's own scan flags one of its files."""

    @property
    def effective_endpoint(self) -> str:
        return (os.environ.get("HF_ENDPOINT") or self.endpoint).rstrip("/")


def _repo_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text):
        raise ValueError(f'{text!r} is not the name of a repo; write it as "org/name"')
    return text


class ModelConfig(Part):
    repo_id: Annotated[str, AfterValidator(_repo_id)]
    revision: Annotated[str, Field(min_length=1)] = "main"
    files: Texts | None = None
    """Patterns (fnmatch); none means every file of the repo."""
    dir: str = ""
    """Below store.models; the model's name when empty."""
    papers: bool = True
    """Whether licence, model card, config and tokenizer of the repo are kept with the weights, though files does not ask for them."""
    min_copies: Annotated[int, Field(ge=1)] = 1
    restorable_within: Duration = 35 * 86400.0
    """Longest time since the last proof of a copy and the last drill before the model is no longer green: a month's drill, and some days [s]."""
    update: Literal["notify", "approve", "auto"] = "notify"
    """Who takes an update: a person, a person who approves its plan by digest, or the nightly round where it is drop-in and scanned clean."""
    allow_globals: Texts | dict[Sha256, Texts] = ()
    """Pickle globals trusted for this model beyond those that a state dict needs; by SHA-256: for those bytes and no others."""
    trust: Literal["off", "report", "require"] = "report"
    """Before and after a download: look at no header; refuse what is hostile and tell the rest; refuse all that is not trusted."""
    load_check: bool = False
    """Load a downloaded weights file before it gets its final name, and refuse one that does not load."""

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.files is not None and not self.files:
            raise Wrong("files", "is empty; leave it out to keep every file of the repo")
        for pattern in self.files or ():
            if pattern != pattern.strip("/") or {"", ".", ".."} & set(pattern.split("/")):
                raise Wrong("files", f'{pattern!r} can match no file of a repo; write patterns like "*.safetensors"')
        return self

    def allowed(self, sha256: str) -> frozenset[str]:
        """The globals allowed for the bytes of *sha256* (64 hex digits; "" where they are not known)."""
        held = self.allow_globals
        return frozenset(held.get(sha256, ()) if isinstance(held, dict) else held)


class CertificateConfig(Part):
    sign_with: AbsolutePath | None = None
    """An Ed25519 private key (PEM) that `load` signs certificates with; its password, if it has one, in STEELYARD_KEY_PASSWORD."""
    trusted_keys: Annotated[tuple[AbsolutePath, ...], BeforeValidator(listed)] = ()
    """Ed25519 public keys (PEM). Where any are named, weights() gives out no file without a certificate that one of them signed."""


# From the environment every value is a text.
MountPoint = Annotated[AbsolutePath | Literal[False], BeforeValidator(lambda value: False if value == "false" else value)]


class MountConfig(Part):
    kind: Literal["mount"]
    path: AbsolutePath
    mount_point: MountPoint | None = None
    """Must be a mount when we write; false for a plain folder."""
    keep_last: Annotated[int, Field(ge=1)] = 3
    """Snapshots that stay; the newest verified one and the locked one stay in any case. See steelyard clean."""
    keep_daily: Annotated[int, Field(ge=0)] = 0
    keep_weekly: Annotated[int, Field(ge=0)] = 0
    keep_monthly: Annotated[int, Field(ge=0)] = 0
    max_age: Duration | None = None
    """Longest time since the last good backup before an absent drive is called overdue; of each drive, where several take turns."""
    parity: Percent | None = None
    """Parity beside each snapshot (par2), so that the drive can heal itself alone: "5%" mends up to that share of a file."""

    @model_validator(mode="after")
    def _mounted_where(self) -> Self:
        if self.mount_point is None:
            raise Wrong("mount_point", "is missing; name the drive's mount point, or write mount_point = false for a plain folder")
        if isinstance(self.mount_point, Path) and not self.path.is_relative_to(self.mount_point):
            raise Wrong("path", f"{self.path} does not lie below mount_point {self.mount_point}")
        return self


ReplicaConfig = Annotated[MountConfig | S3Config, Field(discriminator="kind")]


class FleetConfig(Part):
    """What the machines of a fleet tell each other: see steelyard.inventory."""

    host: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")] = ""
    """This machine's name among the others; its own host name when empty."""
    publish: bool = True
    """Whether the nightly round leaves this machine's inventory in the replicas."""
    stale_after: Duration = 36 * 3600.0
    """Age from which another machine's inventory is called stale [s]."""


RESERVED_COPIES = frozenset({"store", "hub-cache", "hub", "all"})
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


class Config(BaseModel):
    """The whole config. *path* is the file it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: StoreConfig
    hub: HubConfig = HubConfig()
    fleet: FleetConfig = FleetConfig()
    disk: DiskConfig = DiskConfig()
    certificates: CertificateConfig = CertificateConfig()
    models: dict[str, ModelConfig] = Field(min_length=1)
    replicas: dict[str, ReplicaConfig] = {}
    clean: CleanConfig = CleanConfig()
    prices: dict[str, Prices] = {}
    """What an S3 replica costs, by its name; without it nothing is estimated."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for table, names in (("models", self.models), ("replicas", self.replicas)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise Wrong(f"{table}.{name}", f"{name!r} can't be a name; use letters, digits, '.', '_' and '-'")
        if taken := sorted(RESERVED_COPIES & set(self.replicas)):
            raise Wrong(f"replicas.{taken[0]}", "that name is taken by a copy of our own")
        for name in self.models:
            try:
                self.folder(name)
            except UnsafeName as error:
                raise Wrong(f"models.{name}.dir", error.facts["why"]) from error
        if self.clean.outputs and self.store.outputs is None:
            raise Wrong("clean.outputs", "its patterns are looked for below store.outputs, which is not set")
        for name in self.prices:
            if not isinstance(self.replicas.get(name), S3Config):
                raise Wrong(f"prices.{name}", "no replica of kind s3 has that name")
        self._no_model_over_another()
        self.check_places()
        return self

    def _no_model_over_another(self) -> None:
        seen: dict[tuple[Path, str], str] = {}
        for name, model in self.models.items():
            for pattern in model.files or ("*",):
                key = (self.folder(name), pattern)
                if key in seen:
                    other = seen[key]
                    raise Wrong(
                        f"models.{name}", f"would write the same file as models.{other} ({key[0] / pattern}); give one of them another dir"
                    )
                seen[key] = name

    def check_places(self) -> None:
        """:raises Wrong: when a replica and the store lie inside one another, or two replicas in one folder."""
        places: dict[Path, str] = {}
        for name, replica in self.replicas.items():
            if isinstance(replica, S3Config):
                continue
            real = replica.path.resolve()
            for what, ours in (("store.models", self.store.models), ("store.hf_home", self.store.hf_home)):
                home = ours.resolve()
                if real.is_relative_to(home) or home.is_relative_to(real):
                    raise Wrong(
                        f"replicas.{name}.path", f"{replica.path} and {what} ({ours}) lie inside one another; a replica must lie elsewhere"
                    )
            if real in places:
                raise Wrong(f"replicas.{name}.path", f"is the folder of replicas.{places[real]} already")
            places[real] = name

    def folder(self, model: str) -> Path:
        """The folder of *model* in the store."""
        below = self._below[model]
        return self.store.models if below is None else self.store.models / below

    @cached_property
    def _below(self) -> dict[str, PurePosixPath | None]:
        """Each model's folder below the store; None: the store itself."""
        return {name: None if model.dir == "." else check_name(model.dir or name) for name, model in self.models.items()}

    def chosen(self, names: tuple[str, ...] | list[str]) -> list[str]:
        """*names*, or every model when there are none. :raises UnknownModel:"""
        for name in names:
            if name not in self.models:
                raise UnknownModel(model=name, known=", ".join(sorted(self.models)))
        return list(dict.fromkeys(names)) or list(self.models)


def config_path(given: Path | None = None) -> Path:
    """--config, else STEELYARD_CONFIG, else ./steelyard.toml; absolute. :raises ConfigMissing: where the current folder is gone."""
    path = (given or Path(os.environ.get("STEELYARD_CONFIG") or DEFAULT_PATH)).expanduser()
    try:
        return Path(os.path.abspath(path))
    except FileNotFoundError as error:
        hint = "the current folder is no longer there: go to another, or give the whole path"
        raise ConfigMissing(path=str(path), hint=hint) from error


def load_config(given: Path | None = None) -> Config:
    """:raises ConfigMissing: :raises ConfigBroken: with the key that is wrong."""
    path = config_path(given)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigMissing(path=str(path)) from error
    except OSError as error:
        hint = "name a file that can be read with --config or STEELYARD_CONFIG"
        raise ConfigBroken(path=str(path), key="the file", why=f"can't be read: {error.strerror}", hint=hint) from error
    return parse_config(data, path)


def parse_config(data: bytes, path: Path) -> Config:
    """The config that *data* would be as the content of *path*, the environment included. :raises ConfigBroken:"""
    try:
        content = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigBroken(
            path=str(path), key="the file", why=f"is not valid TOML: {error}", hint=f"correct the line named in {path}"
        ) from error
    for key in content:
        if key not in Config.model_fields:
            raise ConfigBroken(path=str(path), key=key, why=f"unknown key; the top level has {', '.join(Config.model_fields)}")
    names = [name for name in os.environ if name.upper().startswith(PREFIX)]
    if any(name.upper().removeprefix(PREFIX).lower().partition("__")[0] in Config.model_fields or "__" in name for name in names):
        from steelyard.environment import over_environment

        return over_environment(content, names, path)
    try:
        return Config.model_validate(content, strict=True)
    except ValidationError as error:
        from steelyard.config_errors import broken

        raise broken(error.errors(include_url=False), path) from error
