"""Where the checkout and the shared data beside it are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
"""Real traces; tests that need one skip where it is absent."""
