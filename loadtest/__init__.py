"""Puts a running server under load from outside, and verifies it: `python -m loadtest`. This module has the errors.

LoadtestError
├── WrongUse     the request can't be carried out as given: exit code 2
└── RunFailed    the run could not be carried out: exit code 1

Refusals and protocol violations of the server are in `venta_client.errors`.
"""

from __future__ import annotations


class LoadtestError(Exception):
    """The root of all errors this package raises on purpose."""


class WrongUse(LoadtestError):
    """The request can't be carried out as given; the message names the remedy."""


class RunFailed(LoadtestError):
    """The run failed; the message names the step and what to check."""
