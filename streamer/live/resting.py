"""Watches of clients that exceed their budgets: each gets occasional snapshots instead of updates. Pure.

Clients take turns, so one with many such watches does not delay one with few. A turn makes a part of one snapshot, and
all turns together use a share of the CPU time. Each vendor is tested once per snapshot and encoded at that moment;
later changes are in the next snapshot.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from streamer.geo.grid import cover, cover_level
from streamer.live.vendor import Vendor
from streamer.live.view import ViewKey
from streamer.live.watch import Payer, Watch
from streamer.protocol.messages import encode_snapshot, update_body

LEAST_REST = 0.5
"""Seconds between two snapshots of a watch at least."""
LOOK_AGAIN = 0.1
"""Seconds after which a client that could not have its turn is checked again."""
WORK = 5e-4
"""CPU seconds of one tick after which no other client gets a turn in it."""
AHEAD = 0.01
"""CPU seconds that may be used ahead of the share of all turns."""
PART = 2e-4
"""CPU seconds of one turn. It is not limited by a number of vendors, as a polygon's first tests take most of it."""
AT_ONCE = 5
"""Vendors that are tested between two checks of the time."""
FORGET = 60.0
"""A time further ahead than this, in seconds, means that the clock was set back."""
MOST_CARDS = 1000
"""Vendors in one message."""


class Turns(NamedTuple):
    """What was written in one step: frames, bytes and positions."""

    frames: int
    sent: int
    delivered: int


class _Poll:
    """A watch that rests, and the snapshot that is being made for it."""

    __slots__ = ("cards", "cells", "due", "key", "owed", "started", "to_look_at")

    def __init__(self, key: ViewKey, due: int, owed: bool) -> None:
        self.key = key
        self.due = due
        self.owed = owed
        """It answers a message, which was charged already."""
        self.cells: tuple[int, ...] | None = None
        self.to_look_at: list[Vendor] | None = None
        self.cards: list[bytes] = []
        self.started = False
        """The first part of the snapshot was written."""


class _Client:
    __slots__ = ("payer", "polls", "turn")

    def __init__(self, payer: Payer) -> None:
        self.payer = payer
        self.polls: OrderedDict[Watch, _Poll] = OrderedDict()
        """In the order of their turns."""
        self.turn = 0


class Resting:
    """The watches that rest.

    Args:
        find: Returns the vendors in these cells of an area, or those of a list.
        resume: Makes a watch get updates again.
        share: The share of a core that all snapshots may take.
    """

    def __init__(
        self,
        find: Callable[[ViewKey, Iterable[int]], list[Vendor]],
        resume: Callable[[Watch, ViewKey, int], None],
        cpu_clock: Callable[[], float],
        share: float,
    ) -> None:
        self.unfinished = False
        """Whether the last `step` left a client waiting that could have had a turn."""
        self._frames = self._sent = self._delivered = 0
        """Written in the current step."""
        self._find = find
        self._resume = resume
        self._cpu_clock = cpu_clock
        self._share = share
        self._free_at = 0.0
        """When the used CPU time is within the share again, epoch seconds."""
        self._clients: dict[Payer, _Client] = {}
        self._turns: list[tuple[int, int, _Client]] = []
        self._watches = 0
        self._order = 0

    def __len__(self) -> int:
        return self._watches

    def has(self, payer: Payer) -> bool:
        """Returns whether watches of this client rest."""
        return payer in self._clients

    def add(self, watch: Watch, key: ViewKey, now: int, *, owed: bool = False) -> None:
        """Adds a watch; `owed`: its client waits for a snapshot."""
        assert watch.payer is not None
        client = self._clients.get(watch.payer)
        if client is None:
            client = self._clients[watch.payer] = _Client(watch.payer)
        client.polls[watch] = _Poll(key, now if owed else now + int(LEAST_REST * 1000), owed)
        self._watches += 1
        if owed:
            client.polls.move_to_end(watch, last=False)
        if owed or len(client.polls) == 1:
            self._next_turn(client, now)

    def remove(self, watch: Watch) -> None:
        """Ends a rest; also of a watch that does not rest."""
        client = None if watch.payer is None else self._clients.get(watch.payer)
        if client is None or client.polls.pop(watch, None) is None:
            return
        self._watches -= 1
        if not client.polls:
            client.turn = 0
            del self._clients[client.payer]

    def step(self, now: int, used: float = 0.0) -> Turns:
        """Gives clients their turns, for the rest of WORK in a tick that has used this many CPU seconds of it."""
        self.unfinished = False
        self._frames = self._sent = self._delivered = 0
        while self._turns and self._due(now) and self._may_go_on(now / 1000):
            if used >= WORK:
                self.unfinished = True
                break
            _, turn, client = heapq.heappop(self._turns)
            if turn != client.turn:
                continue
            watch, poll = next(iter(client.polls.items()))
            wait = 0.0 if poll.owed or poll.to_look_at is not None else client.payer.excess()
            if not wait and watch.writer.ready():
                began = self._cpu_clock()
                if client.payer.calm():
                    self.remove(watch)
                    self._resume(watch, poll.key, now)
                    self._frames += not watch.snapshot_due
                else:
                    self._poll(watch, poll, now)
                    if poll.due > now:
                        client.polls.move_to_end(watch)
                cost = self._cpu_clock() - began
                client.payer.charge_rest(cost)
                self._free_at += cost / self._share
                used += cost
            else:
                poll.due = now + int(max(wait, LOOK_AGAIN) * 1000)
            if client.polls:
                self._next_turn(client, now)
        return Turns(self._frames, self._sent, self._delivered)

    def _due(self, now: int) -> bool:
        due = self._turns[0][0]
        return due <= now or due > now + FORGET * 1000

    def _may_go_on(self, now: float) -> bool:
        ahead = AHEAD / self._share
        if not now - ahead <= self._free_at <= now + FORGET:
            self._free_at = now - ahead  # nothing was used for a while, or the clock was set back
        return self._free_at <= now

    def _next_turn(self, client: _Client, now: int) -> None:
        self._order += 1
        client.turn = self._order
        first = next(iter(client.polls.values()))
        due = min(max(first.due, now), now + int(FORGET * 1000))
        heapq.heappush(self._turns, (due, client.turn, client))

    def _poll(self, watch: Watch, poll: _Poll, now: int) -> None:
        """Tests some more vendors, and writes a frame if it is full or the last one."""
        area = poll.key.area
        if poll.cells is None:
            covered = ((), ()) if area is None else cover(area, cover_level(area))
            poll.cells = (*covered[0], *covered[1])
            return
        if poll.to_look_at is None:
            poll.to_look_at = self._find(poll.key, poll.cells)
        until = self._cpu_clock() + PART
        while True:
            some = poll.to_look_at[-AT_ONCE:]
            del poll.to_look_at[-AT_ONCE:]
            poll.cards += [vendor.card_bytes() for vendor in some if poll.key.holds(vendor)]
            if not poll.to_look_at or len(poll.cards) > MOST_CARDS - AT_ONCE:
                break
            if self._cpu_clock() >= until:
                return
        cards, poll.cards = poll.cards, []
        frame = None
        if not poll.started:
            frame = watch.writer.framing(encode_snapshot(watch.id, cards))
        elif cards:
            frame = watch.kind.frame(update_body(cards, [], []))
        poll.started = bool(poll.to_look_at)
        if not poll.to_look_at:
            poll.to_look_at, poll.owed = None, False
            poll.due = now + max(int(LEAST_REST * 1000), watch.interval)
        if frame is not None:
            watch.writer.write(frame)
            self._frames += 1
            self._sent += len(frame)
            self._delivered += len(cards)
