"""Commands that change what a machine holds and where: nothing goes that a plan did not show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from steelyard.commands.base import COMMON, Asked, Common, Direct, app
from steelyard.report import Report


@app.command
def adopt(
    source: Path, model: str | None = None, *, apply: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """Take over weights that lie about already, if they prove to be what the Hub says; without --apply only report what each file is.

    Parameters
    ----------
    source
        A folder or a file.
    model
        A name from the config; else every model.
    apply
        Record or copy in what proves, and put what stands falsely under a name of the store into quarantine.
    """

    def make() -> Report:
        from steelyard.adopt import adopt as take_over
        from steelyard.site import Site

        return take_over(Site.open(common.config), source, model, apply=apply)

    return Direct("adopt", make)


@app.command
def clean(
    *, apply: Annotated[bool, Parameter(negative="")] = False, pip: Annotated[bool, Parameter(negative="")] = False, common: Common = COMMON
) -> Asked:
    """What may go: superseded snapshots and revisions, orphaned partials, old quarantine, unfinished downloads, old outputs, caches.

    Parameters
    ----------
    apply
        Remove it; without this it is only named.
    pip
        pip's cache too.
    """

    def make() -> Report:
        from steelyard.clean import clean as look
        from steelyard.site import Site

        return look(Site.open(common.config), apply=apply, pip=pip)

    return Direct("clean", make)


@app.command
def move(
    folder: Annotated[Path, Parameter(name="DIR")],
    /,
    *,
    hf_home: Path | None = None,
    link: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """Take the store to another drive: carried and proven there first, then switched to; the former place stays until clean --apply.

    Parameters
    ----------
    folder
        The new models folder: empty, or not there yet.
    hf_home
        A new HF_HOME, for the hub cache to be made anew there.
    link
        Leave the config as it is, and make the old path a link to DIR.
    """

    def make() -> Report:
        from steelyard.move import move as take
        from steelyard.site import Site

        return take(Site.open(common.config), folder, hf_home=hf_home, link=link)

    return Direct("move", make)


@app.command
def views(kind: Literal["copy", "reflink", "hardlink", "auto"], *, common: Common = COMMON) -> Asked:
    """Change how the store and the hub cache share bytes, file by file, each proven first; and write that into the config.

    Parameters
    ----------
    kind
        copy: two real copies; reflink: one set of blocks, two files (btrfs, xfs); hardlink: one file, two names; auto: reflink where it can be had.
    """

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.views import views as change

        return change(Site.open(common.config), kind)

    return Direct("views", make)


@app.command
def target(
    name: str,
    *,
    label: str | None = None,
    forget: str | None = None,
    versioning: Annotated[bool, Parameter(negative="")] = False,
    common: Common = COMMON,
) -> Asked:
    """Put the marker on a replica's drive or bucket and probe what it can do; from then on no other drive is taken for it.

    Parameters
    ----------
    label
        What you call this drive, where several take turns: "B".
    forget
        The id of a drive (its first digits), or its label, that is no longer expected.
    versioning
        Have the bucket keep older versions from now on; without this it is only told whether it does.
    """

    def make() -> Report:
        from steelyard.site import Site
        from steelyard.target import target as mark

        return mark(Site.open(common.config), name, label=label, forget=forget, versioning=versioning)

    return Direct("target", make)
