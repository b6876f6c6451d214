"""The command `python -m loadtest`."""
