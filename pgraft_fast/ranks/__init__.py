"""The processes of a run, one on each GPU."""
