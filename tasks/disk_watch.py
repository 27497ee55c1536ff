"""Tasks of disk-watch."""

from steelyard.disk_watch import look_at_disk
from tasks.twins import twin

twin(look_at_disk, "look at a disk", lambda site, where, *, keep=True: f"look at {where.point}", "disk-watch")
