"""Hours under load: `python -m tests.soak`."""
