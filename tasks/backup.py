"""Tasks of backup."""

from steelyard.backup import copy_files, look_at_replica, prove_source, seal_snapshot
from tasks.twins import some, twin

twin(look_at_replica, "look at a replica", lambda site, copy, manifest: f"look at {manifest.model} in {copy}", "backup")
twin(
    prove_source,
    "prove the source",
    lambda site, manifest, entries: f"prove {manifest.model} in the store · {some([entry.path for entry in entries])}",
    "backup",
)
twin(
    copy_files,
    "copy files",
    lambda site, copy, manifest, entries: f"copy {manifest.model} → {copy} · {some([entry.path for entry in entries])}",
    "backup",
)
twin(seal_snapshot, "seal the snapshot", lambda site, copy, manifest: f"seal {manifest.model} in {copy}", "backup")
