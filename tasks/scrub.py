"""Tasks of scrub; it judges by the tasks of verify."""

from steelyard.scrub import find_due, read_share
from tasks.twins import twin

twin(find_due, "find what is due", lambda site, models: f"find what is due · {len(models)} model{'s' if len(models) != 1 else ''}", "scrub")
twin(read_share, "read a share back", lambda site, name, models, most_bytes: f"read a share of {name} back", "scrub")
