"""Values of the config from the environment: STEELYARD_STORE__MODELS and so on. Loaded only where such a variable is set.

pydantic-settings takes as long to import as half of `steelyard status` takes to run, and hardly any call needs it.
"""

from __future__ import annotations

from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from steelyard.config import PREFIX, Config


class FromEnvironment(Config, BaseSettings):
    """The config with the environment over it, key by key."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's content is handed over as init settings; the environment comes first and so wins, key by key.
        return env_settings, init_settings


def over_environment(content: dict[str, Any]) -> Config:
    """:raises ValidationError: :raises ValueError: when a variable can't be read."""
    return FromEnvironment(**content)
