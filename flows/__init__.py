"""What happens, in which order: one flow for each verb and the nightly round. `python -m flows.VERB` runs one by hand."""

import os

# Before Prefect is loaded, by whichever flow: it reads its settings once, and counts its users while it is imported.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A server of its own for one run, where no other is configured; its first start takes longer than Prefect's own 20 s allow.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}.items():
    os.environ.setdefault(_name, _value)
