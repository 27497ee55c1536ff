"""Tasks of parity."""

from steelyard.parity import make_parity
from tasks.twins import twin

twin(make_parity, "make parity", lambda site, copy, manifest, source: f"make parity for {manifest.model} in {copy}", "backup")
