"""Tasks of check-updates."""

from steelyard.updates import check_model
from tasks.twins import twin

twin(check_model, "ask the Hub", lambda site, model, locked, known=None: f"ask the Hub about {model}", "check-updates")
