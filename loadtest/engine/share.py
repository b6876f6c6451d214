"""Which part of a run one worker carries out, as it is sent to its process. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loadtest.clients.identity import Identity
from loadtest.clients.target import Target
from loadtest.engine.scenario import Scenario, build

GOLDEN = (math.sqrt(5) - 1) / 2
SILVER = math.sqrt(2) - 1


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that drives vendors: `zero` (epoch ms in it) is the start of the run, gaps are divided by `speedup`."""

    path: str
    zero: int
    speedup: float


@dataclass(frozen=True, slots=True)
class Share:
    """Worker `number` of `of` of the same kind, over all machines: it has every `of`th vendor or customer.

    `offset` is the server's clock less this machine's, in ms. `keep`: every acked ping is compared with what is
    stored. About `sampled` customers in all hold full views; with `audited` these are compared with what vendors'
    workers report as acked while the run goes on. Every `timed_every`th frame is timed.
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
    audited: bool = False

    @property
    def lifetime(self) -> int:
        """The lifetime of tokens in seconds: no connection may end for its token within the run."""
        return int(self.scenario.seconds) + 3600

    def indices(self, count: int) -> range:
        """Returns which of `count` vendors or customers this worker has."""
        return range(self.number, count, self.of)

    def as_json(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {
            "target": asdict(self.target),
            "scenario": self.scenario.model_dump(mode="json"),
            "identities": [list(identity) for identity in self.identities],
            "trace": asdict(self.trace) if self.trace else None,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Share:
        """Returns the share that `as_json` gave."""
        return cls(
            **found
            | {
                "target": Target(**found["target"]),
                "scenario": build(found["scenario"], "of the coordinator"),
                "identities": [Identity(*identity) for identity in found["identities"]],
                "trace": Trace(**found["trace"]) if found["trace"] else None,
            }
        )


def spread(index: int, step: float = GOLDEN) -> float:
    """Returns a number from 0 to 1 for each index, so even that any range of indices has about the proportions."""
    return (index * step + step / 2) % 1.0


def pick(index: int, shares: Sequence[float]) -> int:
    """Returns which of several things, in these proportions, the one with this index is."""
    at, place = spread(index) * sum(shares), 0.0
    for which, share in enumerate(shares):
        place += share
        if at < place:
            return which
    return len(shares) - 1
