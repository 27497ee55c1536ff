"""Tasks of the inventory."""

from steelyard.inventory import publish
from tasks.twins import twin

twin(publish, "leave the inventory", lambda site: f"leave the inventory in {', '.join(site.replicas)}", "keep")
