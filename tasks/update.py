"""Tasks of update and rollback."""

from steelyard.incoming import compare_incoming, fetch_incoming, load_incoming
from steelyard.plans import hold_to_plan
from steelyard.update import plan_update, switch_back, switch_to
from tasks.twins import twin

twin(plan_update, "plan an update", lambda site, model, to: f"plan {model} → {to or 'the config’s revision'}", "update")
twin(hold_to_plan, "hold to the plan", lambda site, plan, approved: f"hold {plan.model} to the plan that was approved", "update")
twin(
    fetch_incoming,
    "fetch a new file",
    lambda site, plan, file, incoming, ahead: f"fetch {plan.model} · {file.path} at {plan.new.commit[:8]}",
    "update",
)
twin(load_incoming, "load a new file", lambda site, model, path, sha256: f"load {model} · {path.name}", "update")
twin(compare_incoming, "compare with what is held", lambda site, plan, name, path: f"compare {plan.model} · {name}", "update")
twin(switch_to, "switch", lambda site, plan, manifest, incoming: f"switch {plan.model} to {plan.new.commit[:8]}", "update")
twin(switch_back, "switch back", lambda site, model, held, current: f"switch {model} back to {held.commit[:8]}", "update")
