"""One alert in memory, and the states of its vendors. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamer.alerts import rules
from streamer.alerts.edges import METRES, EdgeCell, margin_of
from streamer.geo.grid import bus_cover
from streamer.geo.shapes import Area, Box
from streamer.protocol.alerts import Definition
from streamer.storage.alerts import Evaluated, StateRow


class Needs(NamedTuple):
    """The subscriptions that an alert needs: cells, and vendors wherever they are."""

    cells: frozenset[int]
    listed: frozenset[str]


class State:
    """The state of one vendor in an alert, and the events that are not stored yet."""

    __slots__ = ("card", "events", "known", "version")

    def __init__(self) -> None:
        self.known = rules.OUTSIDE
        self.version = 0
        """The version of the row in PostgreSQL; 0: there is no row, or an obsolete one."""
        self.card: dict[str, Any] = {}
        self.events: list[tuple[str, int, str]] = []
        """Type, time and body of each."""

    @classmethod
    def of(cls, row: StateRow) -> State:
        """Returns the state of a stored row."""
        state = cls()
        state.known = rules.State(rules.Seen(row.inside, row.open, row.online), row.told, row.event_at)
        state.version = row.version
        state.card = row.card
        return state


class Alert:
    """One alert; `states` has the vendors that are inside, or whose quiet time has not ended."""

    __slots__ = (
        "area",
        "begun",
        "cells",
        "circle",
        "definition",
        "ended",
        "expires",
        "id",
        "margin",
        "metadata",
        "needs",
        "revision",
        "slot",
        "started",
        "states",
    )

    def __init__(self, row: Evaluated, definition: Definition) -> None:
        self.id = row.id
        self.revision = row.revision
        self.slot = row.slot
        self.expires = row.expires
        self.started = row.started
        self.metadata = row.source.get("metadata")
        self.definition = definition
        self.area: Area | None = definition.area
        self.margin = 0.0 if definition.area is None else margin_of(definition.area)
        self.needs = needs_of(definition, self.margin)
        self.cells: list[EdgeCell[Alert]] = []
        """The cells of the tracker's grid that its area is in."""
        self.circle = 0
        """The number of its area in the grid's table, if that is a circle."""
        self.begun = False
        """Its stored states were compared with the live index, so changes are evaluated from now on."""
        self.ended = False
        self.states: dict[str, State] = {}


def needs_of(definition: Definition, margin: float) -> Needs:
    """Returns the subscriptions of an alert: the cells of the area with its margin, or the listed vendors."""
    if definition.area is None:
        return Needs(frozenset(), definition.vendors or frozenset())
    cells = bus_cover(definition.area)
    bounds = definition.area.bounds()
    more = margin / METRES
    south, north = max(-90.0, bounds.south - more), min(90.0, bounds.north + more)
    if south > -89.0 and north < 89.0 and bounds.width < 300.0:
        # Slightly wider than needed; the cells are kilometres wide.
        wide = more * 60
        west, east = (bounds.west - wide + 540.0) % 360.0 - 180.0, (bounds.east + wide + 540.0) % 360.0 - 180.0
        cells = cells | bus_cover(Box(south, west, north, east))
    return Needs(cells, frozenset())
