"""A run: its scenario, the worker processes that carry it out, and the verification of what the server did."""
