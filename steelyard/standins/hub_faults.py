"""Faults as sentences (first cut)."""

from __future__ import annotations

from steelyard.standins.hub_reply import Asked, Reply


class FaultBook:
    def apply(self, _asked: Asked, reply: Reply) -> Reply:
        return reply
