"""Commands about new revisions: ask, take, go back."""

from __future__ import annotations

from steelyard.commands.base import COMMON, Asked, Common, Models, app
from steelyard.verbs import Call


@app.command(name="check-updates")
def check_updates(*models: Models, common: Common = COMMON) -> Asked:
    """What changed upstream and what it means; changes nothing that is held."""
    return Call("check-updates", common.config, {"models": models})


@app.command
def update(model: str, *, to: str | None = None, plan: str | None = None, common: Common = COMMON) -> Asked:
    """Take the new version: fetched beside the old one, proven, loaded, then switched to; the old one is kept.

    Parameters
    ----------
    to
        A branch, tag or commit; else the config's revision.
    plan
        The digest of a plan that check-updates wrote: just that is taken, and refused if upstream has moved since.
    """
    return Call("update", common.config, {"model": model, "to": to, "plan": plan})


@app.command
def rollback(model: str, *, common: Common = COMMON) -> Asked:
    """Go back to the revision that was current before; no network, seconds."""
    return Call("rollback", common.config, {"model": model})
