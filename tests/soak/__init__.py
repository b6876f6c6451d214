"""A soak test that runs for hours: `python -m tests.soak`."""
