"""The events of an alert: a state machine for one alert and one vendor. Pure; times are epoch milliseconds.

- `entered` and `left`: the vendor entered or left the alert's set: the live vendors inside the area (or in the list);
  with the filter `open` only the open ones.
- `opened`, `closed`, `online` and `offline`: a vendor that was and is inside changed.
- Within `quiet` of an event the same event of the same vendor is not reported again.
"""

from __future__ import annotations

from typing import NamedTuple

from streamer.protocol.alerts import Definition


class Seen(NamedTuple):
    """A vendor as the live index has it: whether it is live and inside the area or in the list, open, online."""

    inside: bool
    open: bool
    online: bool


class State(NamedTuple):
    """A vendor's state: how it was last seen, and when each event was last reported.

    `event_at` is the time of the newest event: the next one is later, so that the events of a vendor are ordered.
    """

    seen: Seen
    told: dict[str, int]
    event_at: int


OUTSIDE = State(Seen(False, False, False), {}, 0)
"""The state of a vendor that was never seen inside."""


def step(definition: Definition, state: State, seen: Seen, now: int) -> tuple[State, list[tuple[str, int]]] | None:
    """Returns the next state and the events that lead to it, each with its time; None when nothing changed."""
    before, seen = state.seen, _relevant(definition, seen)
    if seen == before:
        return None
    told = {event: at for event, at in state.told.items() if at + definition.quiet > now}
    events, at = [], max(now, state.event_at + 1)
    for event in happened(definition.open, before, seen):
        if event in definition.on and event not in told:
            events.append((event, at))
            told[event] = now
            at += 1
    if not definition.quiet:
        told = {}
    return State(seen, told, events[-1][1] if events else state.event_at), events


def begin(definition: Definition, seen: Seen) -> State:
    """Returns the state of a vendor that is inside when the alert starts, which is no event."""
    return State(_relevant(definition, seen), {}, 0)


def happened(only_open: bool, before: Seen, seen: Seen) -> list[str]:
    """Returns the events between two states of a vendor, in the order of EVENTS."""
    belonged = before.inside and (before.open or not only_open)
    belongs = seen.inside and (seen.open or not only_open)
    found = []
    if belongs is not belonged:
        found.append("entered" if belongs else "left")
    if before.inside and seen.inside:
        if seen.open is not before.open:
            found.append("opened" if seen.open else "closed")
        if seen.online is not before.online:
            found.append("online" if seen.online else "offline")
    return found


def quiet_until(definition: Definition, state: State) -> int:
    """Returns until when the reported events of a vendor suppress further ones."""
    return max(state.told.values(), default=0) + definition.quiet if state.told else 0


def _relevant(definition: Definition, seen: Seen) -> Seen:
    """Removes attributes that no event of the alert depends on, so that their changes need not be stored."""
    if not seen.inside:
        return OUTSIDE.seen
    on = definition.on
    is_open = seen.open and (definition.open or "opened" in on or "closed" in on)
    online = seen.online and ("online" in on or "offline" in on)
    return Seen(True, is_open, online)
