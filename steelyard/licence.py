"""The licence of a model, as the repo's own model card says at the locked commit: read from the card that is held, not asked of the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from steelyard.lock import LockedModel
from steelyard.site import Site

MOST_BYTES = 256 * 1024
CARD = "README.md"


def licence_of(site: Site, model: str, held: LockedModel) -> str | None:
    """Its identifier ("openrail", "apache-2.0"), or the name that the card gives; None where no card is held or it says nothing."""
    repo = f"models--{held.repo_id.replace('/', '--')}"
    in_cache = site.config.store.hub_cache / repo / "snapshots" / held.commit / CARD
    cards = [site.store.ours / "papers" / model / held.commit / CARD, in_cache]
    if held.get(CARD) is not None:
        cards.insert(0, site.config.folder(model) / CARD)
    for card in cards:
        if told := _told_by(card):
            return told
    return _told_by_hub(site.store.ours / "papers" / model / f"{held.commit}.json")


def _told_by_hub(record: Path) -> str | None:
    """What the Hub's page said when the papers were kept: a repo may have no card."""
    try:
        return str(json.loads(record.read_bytes())["licence"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _told_by(card: Path) -> str | None:
    try:
        with card.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    return licence_in(text)


def licence_in(card: str) -> str | None:
    """From the front matter (YAML between two lines of ---): license_name where license is "other", else license; a list is joined."""
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    if not front or not re.search(r"^license", front[1], re.MULTILINE):
        return None
    plain = re.search(r"^license: *([A-Za-z0-9][A-Za-z0-9.+-]*) *\r?$", front[1], re.MULTILINE)
    if plain and plain[1].lower() not in {"other", "null"}:
        return plain[1]
    import yaml  # 15 ms, for the few cards that say more than a word

    try:
        told = yaml.safe_load(front[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(told, dict):
        return None
    kind, name = told.get("license"), told.get("license_name")
    chosen = name if kind in {"other", None} and name else kind
    text = ", ".join(map(str, chosen)) if isinstance(chosen, list) else str(chosen or "")
    return " ".join(text.split())[:80] or None
