"""doctor: what is wrong with this machine's set-up, and the fix for each. Changes nothing, and loads neither torch nor Prefect into this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from steelyard.config import config_path, load_config
from steelyard.doctor.environment import pins, torch
from steelyard.doctor.hub import hub
from steelyard.doctor.places import lock_row, places, readable, replica
from steelyard.doctor.row import row
from steelyard.doctor.server import prefect
from steelyard.errors import SteelyardError
from steelyard.report import Report, Row
from steelyard.site import Site


def doctor(config: Path | None = None) -> Report:
    """One row for each thing that must be right. "unknown" is what could not be found out, or does not matter here; "failed" is exit code 1,
    and 2 where it is the config, as for every other command.
    """
    report = Report("doctor")
    report.rows += _looked("pins", pins)
    report.rows += _looked("torch", torch)
    try:
        settings = load_config(config)
    except SteelyardError as error:
        report.rows.append(row("config", "failed", error.message, error.hint, exit_code=error.exit_code))
    else:
        report.rows.append(row("config", "ok", f"{config_path(config)}: {len(settings.models)} models, {len(settings.replicas)} replicas"))
        site = Site(settings, config_path(config))
        report.rows += _looked("lock", partial(lock_row, site))
        report.rows += _looked("store", partial(places, settings))
        report.rows += _looked("files", partial(readable, site))
        for name in settings.replicas:
            report.rows += _looked(f"replica {name}", partial(replica, name, site))
        report.rows += _looked("hub", partial(hub, settings))
    report.rows += _looked("prefect server", prefect)
    return report.close()


def _looked(check: str, look: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows of one look. Whatever stands in its way is a finding too, and no reason not to look at the rest."""
    rows: list[Row] = []
    try:
        rows.extend(look())
    except SteelyardError as error:
        rows.append(row(check, "failed", error.message, error.hint))
    except OSError as error:
        rows.append(
            row(check, "failed", f"{error.filename or check}: {error.strerror or error}", "see that this user may read and write there")
        )
    return rows
