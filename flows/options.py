"""What every flow can be asked: the parameter models that the Prefect UI shows as forms and the API guards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaValue

from steelyard.config import Config, load_config
from steelyard.errors import SteelyardError


def _config() -> Config | None:
    try:
        return load_config()
    except SteelyardError:
        return None


def _name_the_models(schema: JsonSchemaValue) -> None:
    """Offer the configured names where the form is made on a machine that has the config (STEELYARD_CONFIG, or ./steelyard.toml)."""
    config = _config()
    if config is not None:
        (schema["items"] if schema.get("type") == "array" else schema)["enum"] = list(config.models)


def _name_the_replicas(schema: JsonSchemaValue) -> None:
    _enum_of(schema, [*(config.replicas if (config := _config()) else ())])


def _name_the_copies(schema: JsonSchemaValue) -> None:
    _enum_of(schema, ["store", "hub-cache", *config.replicas, "all"] if (config := _config()) else [])


def _enum_of(schema: JsonSchemaValue, names: list[str]) -> None:
    if not names:
        return
    choices = [schema, *schema.get("anyOf", ())]
    for one in choices:
        if one.get("type") == "string":
            one["enum"] = names


Models = Annotated[
    tuple[str, ...],
    Field(title="Models", description="Names from the config; none means all.", max_length=10_000, json_schema_extra=_name_the_models),
]
Model = Annotated[
    str, Field(title="Model", description="A name from the config.", min_length=1, max_length=63, json_schema_extra=_name_the_models)
]
CopyName = Annotated[
    str,
    Field(
        title="Copy",
        description="store, hub-cache, a replica's name, or all.",
        min_length=1,
        max_length=63,
        json_schema_extra=_name_the_copies,
    ),
]
ReplicaName = Annotated[
    str | None,
    Field(
        title="Replica",
        description="One replica by name; its drive must then be there. Empty: all that are there.",
        max_length=63,
        json_schema_extra=_name_the_replicas,
    ),
]
DryRun = Annotated[bool, Field(title="Dry run", description="Only say what would be done; nothing is changed.")]


def _config_last(schema: JsonSchemaValue) -> None:
    """In the form, what is rarely touched stands last; pydantic puts the fields of a base class first."""
    schema["properties"]["config"] = schema["properties"].pop("config")


class Options(BaseModel):
    """The parameters of a flow."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_config_last)

    config: Annotated[
        Path | None,
        Field(
            title="Config file",
            description="An absolute path on the machine that does the work. Empty: STEELYARD_CONFIG, else steelyard.toml in the project.",
        ),
    ] = None

    @classmethod
    def of(cls, config: Path | None, params: Mapping[str, Any]) -> Self:
        """From what the command line asks of the verb of the same name."""
        # pydantic's models have a method of the name copy.
        given = {"copy_name" if key == "copy" else key: value for key, value in params.items()}
        return cls(config=config.absolute() if config else None, **given)

    @property
    def title(self) -> str:
        """What the run is about, as its name shows it after the verb."""
        return ""

    @property
    def tags(self) -> tuple[str, ...]:
        """Models and replicas that the run touches, as far as they were named."""
        return ()


def which(models: tuple[str, ...]) -> str:
    """A few names, or how many."""
    return "all models" if not models else ", ".join(models) if len(models) <= 3 else f"{len(models)} models"
