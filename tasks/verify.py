"""Tasks of verify; repair judges by them too."""

from steelyard.verify import judge_by_lock, judge_files
from tasks.twins import some, twin

twin(
    judge_files,
    "judge files",
    lambda site, copy, manifest, entries, look: f"judge {manifest.model} in {copy} · {some([entry.path for entry in entries])}",
    "verify",
)
twin(
    judge_by_lock,
    "judge files by the lock",
    lambda site, model, locked, files: f"judge {model} by the lock · {some([file.path for file in files])}",
    "verify",
)
