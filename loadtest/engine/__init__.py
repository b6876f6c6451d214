"""A run: its scenario, the worker processes, and the verification of the server."""
