"""Chaos tests: parts of a system fail, and a judge checks it from outside. Run `python -m tests.chaos`."""
