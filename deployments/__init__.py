"""Where and when the flows run: `steelyard up` on this machine, the automations, the systemd unit."""
