"""What happens, in which order: one flow for each verb and the nightly round. `python -m flows.VERB` runs one by hand."""
