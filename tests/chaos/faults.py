"""The faults of a round, derived only from its seed. Pure."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

SERVERS = ("server 1", "server 2")
SERVICES = ("postgresql", "valkey")
WIRES = (
    "wire clients",
    "wire server 1 to postgresql",
    "wire server 2 to postgresql",
    "wire server 1 to valkey",
    "wire server 2 to valkey",
)
KINDS = {
    "server": ("kill", "stop", "drain", "kill while starting", "kill while draining"),
    "postgresql": ("kill", "stop", "restart"),
    "valkey": ("kill", "stop", "restart", "forget"),
    "wire": ("cut", "refuse", "freeze", "slow"),
    "migration": ("kill", "let run"),
}
LEAD = 0.5
"""The latest second at which a round's first fault begins."""
LATEST = 2.0
"""The latest second at which any fault begins."""
LONGEST = 2.5
LONG = 14.0
"""The longest duration in seconds of most faults, and of one in eight: longer than offline vendors stay on the map."""


class Fault(NamedTuple):
    """One fault: when it begins, in seconds from the round's start, and how long it lasts."""

    at: float
    lasts: float
    target: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.target} at {self.at:g} s for {self.lasts:g} s"


def plan(seed: int) -> list[Fault]:
    """Returns the faults of a round in the order of their start; no target has two."""
    random = Random(seed)
    targets = [*SERVERS, *SERVERS, *SERVICES, *WIRES, "migration"]
    faults: list[Fault] = []
    for number in range(random.choice((1, 1, 2, 2, 3, 4))):
        target = random.choice(targets)
        targets = [other for other in targets if other != target]
        kind = random.choice(KINDS[target.split()[0]])
        at = random.uniform(0, LATEST if number else LEAD)
        lasts = random.uniform(LONGEST, LONG) if random.random() < 1 / 8 else random.uniform(0.1, LONGEST)
        faults.append(Fault(round(at, 2), round(lasts, 2), target, kind))
    return sorted(faults)
