"""Sizes, times, rates and paths as people write them in the config and on the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGTP", 1)}, **{f"{p}IB": 1024**n for n, p in enumerate("KMGTP", 1)}}


class Wrong(ValueError):
    """A value of the config that can't be used; *key* is where, below what is being checked."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key, self.why = key, why


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_size(text: object) -> object:
    """ "15 GB" or "1.5 GiB" or a number of bytes -> bytes. :raises ValueError:"""
    if isinstance(text, int) and _is_number(text):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text) if isinstance(text, str) else None
    if not match or (match[2].upper() or "B") not in _UNITS:
        raise ValueError(f'{text!r} is not a size; write it as "15 GB" or "500 MiB"')
    return int(float(match[1]) * _UNITS[match[2].upper() or "B"])


def parse_duration(text: object) -> object:
    """ "30min", "26h", "35 days" or a number of seconds -> seconds. :raises ValueError:"""
    if _is_number(text):
        return text
    unit = r"\s*(s|sec|seconds?|min|minutes?|h|hours?|d|days?|w|weeks?)\s*"
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?){unit}", text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f'{text!r} is not a time; write it as "30min", "26h" or "35d"')
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2][0]]


def parse_percent(text: object) -> object:
    """ "5%" or 5 -> 5.0. :raises ValueError:"""
    if _is_number(text):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f'{text!r} is not a share; write it as "5%"')
    return float(match[1])


def _absolute(text: object) -> object:
    try:
        path = Path(text).expanduser() if isinstance(text, str | Path) else None
    except RuntimeError:  # ~name of nobody, or no home to be found
        path = None
    if path is None or not path.is_absolute() or "\0" in str(path):
        raise ValueError(f"{str(text) if isinstance(text, Path) else text!r} must be an absolute path")
    return Path(os.path.normpath(path))


def listed(value: object) -> object:
    """A list of TOML as the tuple that a frozen setting holds."""
    return tuple(value) if isinstance(value, list) else value


def _without_userinfo(url: str) -> str:
    """Some people write a password into an address; it is in no message."""
    return re.sub(r"//[^/]*@", "//…@", url)


def http_url(text: str) -> str:
    """*text* where it is the address of an http server. :raises ValueError:"""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not any(map(str.isspace, text))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f'{_without_userinfo(text)!r} is not an address; write it as "https://host"')
    return text


def parse_rate(text: object) -> object:
    """ "5 MB/s" or "40 Mbit/s" or a number of bytes a second -> bytes a second. :raises ValueError:"""
    if isinstance(text, int) and _is_number(text):
        return text
    if not isinstance(text, str):
        raise ValueError(f'{text!r} is not a rate; write it as "5 MB/s" or "40 Mbit/s"')
    bits = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?)bit/s\s*", text)
    if bits:
        return int(float(bits[1]) * {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}[bits[2]] / 8)
    bare = text.strip().removesuffix("/s")
    if bare == text.strip():
        raise ValueError(f'{text!r} is not a rate; write it as "5 MB/s" or "40 Mbit/s"')
    try:
        return parse_size(bare)
    except ValueError as error:
        raise ValueError(f'{text!r} is not a rate; write it as "5 MB/s" or "40 Mbit/s"') from error


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Percent = Annotated[float, BeforeValidator(parse_percent), Field(ge=0.1, le=100)]
Texts = Annotated[tuple[str, ...], BeforeValidator(listed)]
Url = Annotated[str, AfterValidator(http_url)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Rate = Annotated[int, BeforeValidator(parse_rate), Field(gt=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
