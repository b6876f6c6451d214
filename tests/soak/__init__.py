"""A soak test of hours: `python -m tests.soak`."""
