"""Assigns alerts to processes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from streamer.storage.alerts import SLOTS


def slots_of(process: str, living: Collection[str]) -> frozenset[int]:
    """Returns the slots of a process: each belongs to the living process with the highest hash (rendezvous).

    When a process starts or ends, only its own slots are reassigned.
    """
    return frozenset(slot for slot in range(SLOTS) if max(living, key=lambda name: _weight(slot, name)) == process)


def _weight(slot: int, process: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"{slot}:{process}".encode(), digest_size=8).digest(), process
