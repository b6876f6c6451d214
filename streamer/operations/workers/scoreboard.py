"""The state of the workers of one server: one slot per worker in shared memory."""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

CAUSE_BYTES = 400
SLOT = struct.Struct(f"dB{CAUSE_BYTES}p")
SILENT = 5.0
"""Seconds without a heartbeat after which a worker counts as failed; one that died is replaced within that time."""


class Slot(NamedTuple):
    """A worker: last heartbeat (monotonic seconds), whether it serves, its problem."""

    beat: float
    serving: bool
    cause: str


class Scoreboard:
    """Slots 0 to `count` - 1. Created before the workers are forked; each writes its own slot, all read all."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, SLOT.size * count)

    def put(self, number: int, slot: Slot) -> None:
        """Writes a slot."""
        cause = slot.cause.encode()[: CAUSE_BYTES - 1].decode(errors="ignore").encode()
        SLOT.pack_into(self._memory, SLOT.size * number, slot.beat, slot.serving, cause)

    def slot(self, number: int) -> Slot:
        """Reads a slot."""
        beat, serving, cause = SLOT.unpack_from(self._memory, SLOT.size * number)
        return Slot(beat, bool(serving), cause.decode(errors="replace"))

    def beat(self, number: int, now: float, cause: str = "") -> None:
        """Records a worker's heartbeat and what keeps it from serving."""
        held = self.slot(number)
        if not held.serving or held.cause != cause:
            self.put(number, held._replace(beat=now, serving=True, cause=cause))
        else:
            struct.pack_into("d", self._memory, SLOT.size * number, now)

    def failures(self, now: float, but: int | None = None) -> dict[str, str]:
        """Returns the problems of the workers, by name, except worker `but`."""
        found = {}
        for number in range(self.count):
            slot = self.slot(number)
            if number == but:
                continue
            if now - slot.beat > SILENT:
                found[f"worker {number}"] = f"no heartbeat for {now - slot.beat:.0f} s"
            elif slot.cause:
                found[f"worker {number}"] = slot.cause
        return found
