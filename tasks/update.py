"""Tasks of update and rollback."""

from steelyard.update import fetch_incoming, load_incoming, plan_update, switch_back, switch_to
from tasks.twins import twin

twin(plan_update, "plan an update", lambda site, model, to: f"plan {model} → {to or 'the config’s revision'}", "update")
twin(
    fetch_incoming,
    "fetch a new file",
    lambda site, model, new, file, incoming: f"fetch {model} · {file.path} at {new.commit[:8]}",
    "update",
)
twin(load_incoming, "load a new file", lambda site, model, path: f"load {model} · {path.name}", "update")
twin(switch_to, "switch", lambda site, plan, manifest, incoming: f"switch {plan.model} to {plan.new.commit[:8]}", "update")
twin(switch_back, "switch back", lambda site, model, held, current: f"switch {model} back to {held.commit[:8]}", "update")
