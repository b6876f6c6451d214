"""How far clocks may differ. Pure."""

from __future__ import annotations

CLOCK_TOLERANCE = 5_000
"""Milliseconds by which clocks of servers may differ. State that is further ahead is replaced by any later state."""
