"""Tasks of drill."""

from steelyard.drill import drill_model
from tasks.twins import twin

twin(drill_model, "drill a restore", lambda site, model, name, device: f"bring {model} back from {name} to scratch and load it", "drill")
