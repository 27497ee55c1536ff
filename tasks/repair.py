"""Tasks of repair."""

from steelyard.repair_file import mend_file
from tasks.twins import twin

twin(
    mend_file,
    "mend a file",
    lambda site, name, manifest, trusted, entry, finding, others, dry_run, running: (
        f"{'price mending' if dry_run else 'mend'} {manifest.model} in {name} · {entry.path}"
    ),
    "repair",
)
