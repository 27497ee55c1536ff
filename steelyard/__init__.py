"""Steelyard keeps large model weights downloaded, verified, loadable, backed up and current, and proves it by restoring them."""

__version__ = "0.1.0"
