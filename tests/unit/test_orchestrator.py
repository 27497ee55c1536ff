"""Whether a Prefect API is there: another program that took its port is none."""

from __future__ import annotations

from steelyard.orchestrator import answers
from steelyard.standins.hub import LoopbackHub


def test_another_program_on_that_port_is_no_server(hub: LoopbackHub) -> None:
    assert not answers(f"{hub.endpoint}/api")
    hub.down()
    assert not answers(f"{hub.endpoint}/api")
