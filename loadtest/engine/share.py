"""Which part of a run one worker carries out, as it is handed over to its process. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loadtest.clients.identity import Identity
from loadtest.clients.target import Target
from loadtest.engine.scenario import Scenario, build

GOLDEN = (math.sqrt(5) - 1) / 2
SILVER = math.sqrt(2) - 1


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace to drive vendors by: `zero` (epoch ms in it) is the start of the run, gaps are divided by `speedup`."""

    path: str
    zero: int
    speedup: float


@dataclass(frozen=True, slots=True)
class Share:
    """Worker `number` of `of` that have the same kind, over all machines: it has every `of`th vendor or customer.

    `offset` is the server's clock less this machine's, in ms. `keep`: every acked ping is to be compared with what is
    stored. About `sampled` customers in all hold full views, and every `timed_every`th frame is timed.
    """

    kind: Literal["vendors", "customers"]
    number: int
    of: int
    target: Target
    secret: str
    scenario: Scenario
    identities: Sequence[Identity]
    seed: int = 0
    offset: float = 0.0
    keep: bool = False
    sampled: int = 20
    timed_every: int = 1
    trace: Trace | None = None
    database: str | None = None
    own: str | None = None
    shown_before: Sequence[str] = field(default=())

    @property
    def lifetime(self) -> int:
        """How long tokens are good for, in seconds: no connection is to end for its token within the run."""
        return int(self.scenario.seconds) + 3600

    def indices(self, count: int) -> range:
        """Which of `count` vendors or customers this worker has."""
        return range(self.number, count, self.of)

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {
            "target": asdict(self.target),
            "scenario": self.scenario.model_dump(mode="json"),
            "identities": [list(identity) for identity in self.identities],
            "trace": asdict(self.trace) if self.trace else None,
            "shown_before": list(self.shown_before),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Share:
        """What `as_json` gave."""
        return cls(
            **found
            | {
                "target": Target(**found["target"]),
                "scenario": build(found["scenario"], "handed over"),
                "identities": [Identity(*identity) for identity in found["identities"]],
                "trace": Trace(**found["trace"]) if found["trace"] else None,
            }
        )


def spread(index: int, step: float = GOLDEN) -> float:
    """A number from 0 to 1 for each index, so even that any run of indices has all proportions about right."""
    return (index * step + step / 2) % 1.0


def pick(index: int, shares: Sequence[float]) -> int:
    """Which of several things, in these proportions, the one with this index is."""
    at, place = spread(index) * sum(shares), 0.0
    for which, share in enumerate(shares):
        place += share
        if at < place:
            return which
    return len(shares) - 1
