"""The commands, by what they are for; importing this makes them known to *app*."""

from steelyard.commands import keep, look, order, start, updates
from steelyard.commands.base import COMMON, EXIT_CODES, Asked, Common, Direct, app

__all__ = ["COMMON", "EXIT_CODES", "Asked", "Common", "Direct", "app", "keep", "look", "order", "start", "updates"]
