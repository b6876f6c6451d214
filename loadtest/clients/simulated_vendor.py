"""A vendor in a scenario: it moves, its phone loses the network, and all it was told is stored is remembered."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from random import Random

from loadtest.clients.identity import Identity
from loadtest.clients.ping import Ping
from loadtest.clients.target import Target
from loadtest.clients.vendor import Vendor
from loadtest.engine.city import Mover
from loadtest.measure.recorder import Tally

LIMIT = 20_000
GRID = 4
SURELY_LIVE = 585_000
SURELY_HISTORY = 615_000


class Ledger:
    """The acked pings of one vendor. `keep` holds them all, at 24 bytes each; otherwise only how many and the newest.

    `newest` is the newest that surely went live: it was acked within 585 s. `unsure`: one later may have gone live.
    """

    def __init__(self, keep: bool) -> None:
        self.count = 0
        self.newest: Ping | None = None
        self.unsure = False
        self._keep = keep
        self._times = array("q")
        self._places = array("d")

    def add(self, pings: list[Ping], now: float) -> None:
        """These were acked at `now` (epoch ms)."""
        self.count += len(pings)
        for ping in pings:
            age = now - ping.timestamp
            if age > SURELY_LIVE:
                self.unsure = self.unsure or age < SURELY_HISTORY or self.newest is None
            elif self.newest is None or ping.timestamp > self.newest.timestamp:
                self.newest, self.unsure = ping, False
            if self._keep:
                self._times.append(ping.timestamp)
                self._places.extend((ping.lat, ping.long))

    def pings(self) -> list[Ping]:
        """All that were kept."""
        places = self._places
        return [Ping(time, places[2 * n], places[2 * n + 1], time) for n, time in enumerate(self._times)]


class Truck(Vendor):
    """One vendor's app with its ledger. A ping that was due while the phone had a network has an even `timestamp`, one
    of a backlog an odd one: so every watcher can tell from the position alone whether its delay means anything.
    """

    def __init__(
        self,
        target: Target,
        identity: Identity,
        token: Callable[[], str],
        random: Random,
        tally: Tally,
        clock: Callable[[], float],
        *,
        keep: bool,
    ) -> None:
        super().__init__(target, identity, token, random, limit=LIMIT)
        self.ledger = Ledger(keep)
        self.left_at = 0.0
        self._tally = tally
        self._now = clock
        self._lost_at = 0.0

    def lose(self) -> None:
        self._lost_at = self._now()
        super().lose()

    def report(self, ping: Ping) -> None:
        """Send a ping that is due; without a network it becomes part of a backlog."""
        if not self.reachable:
            ping = ping._replace(timestamp=ping.timestamp + 1)
            self._tally.counts["backlog"] += 1
        self.ping(ping)

    def stored(self, pings: list[Ping]) -> None:
        now = self._now()
        self.ledger.add(pings, now)
        tally, lost_at = self._tally, self._lost_at
        tally.counts["acked"] += len(pings)
        for ping in pings:
            # what was under way when the phone lost its network had to wait for that, not for the server
            if not ping.timestamp & 1 and ping.due > lost_at:
                tally.delay("ack", (now - ping.due) / 1000)


def wander(mover: Mover, every: float, first: float, random: Random) -> Iterator[Ping]:
    """A vendor's pings for ever: from `first` (epoch ms) on every `every` seconds, give or take a twentieth."""
    due, gap = first, 0.0
    while True:
        spot = mover.move(gap)
        timestamp = on_grid(due)
        yield Ping(timestamp, spot.lat, spot.long, timestamp, spot.heading, spot.speed)
        gap = every * random.uniform(0.95, 1.05)
        due += max(float(GRID), gap * 1000)


def on_grid(moment: float) -> int:
    """The next millisecond at which a ping may be due: a multiple of 4, so that a worker wakes 250 times a second at
    most. Waking costs it several times what sending does, and the timers of phones are no finer.
    """
    return -int(-moment // GRID) * GRID
