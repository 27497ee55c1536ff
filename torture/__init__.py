"""Faults by the thousand: every verb, over a small world, killed and failed at each boundary of its writes. `python -m torture --help`."""
