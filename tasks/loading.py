"""Tasks of load."""

from steelyard.loading import load_file
from tasks.twins import twin

twin(
    load_file,
    "load a file",
    lambda site, manifest, entry, device, timeout_s, sign: f"load {manifest.model} · {entry.path} on {device}",
    "load",
)
