"""Tasks of restore."""

from steelyard.restore import bring_files
from tasks.twins import some, twin

twin(
    bring_files,
    "bring files back",
    lambda site, manifest, trusted, entries, target, names, source: (
        f"bring {manifest.model} back from {source or 'any copy'} · {some([entry.path for entry in entries])}"
    ),
    "restore",
)
