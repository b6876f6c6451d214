"""One alert as its process holds it, and what it knows of vendors. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamer.alerts import rules
from streamer.alerts.edges import METRES, EdgeCell, margin_of
from streamer.geo.grid import bus_cover
from streamer.geo.shapes import Area, Box
from streamer.protocol.alerts import Definition
from streamer.storage.alerts import Evaluated, StateRow


class Needs(NamedTuple):
    """What the broker must hear for an alert: cells, and vendors wherever they are."""

    cells: frozenset[int]
    listed: frozenset[str]


class State:
    """What is known of one vendor, and the events that are not stored yet."""

    __slots__ = ("card", "events", "known", "version")

    def __init__(self) -> None:
        self.known = rules.OUTSIDE
        self.version = 0
        """Of the row in PostgreSQL; 0: there is none that matters."""
        self.card: dict[str, Any] = {}
        self.events: list[tuple[str, int, str]] = []
        """Type, time and body of each."""

    @classmethod
    def of(cls, row: StateRow) -> State:
        """Returns a state as it was stored."""
        state = cls()
        state.known = rules.State(rules.Seen(row.inside, row.open, row.online), row.told, row.event_at)
        state.version = row.version
        state.card = row.card
        return state


class Alert:
    """One alert; `states` holds the vendors that are inside, or of whom an event is still quiet."""

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
        """Of the tracker's grid, in which its area is."""
        self.circle = 0
        """The number of its area in the grid's table, if that is a circle."""
        self.begun = False
        """Its states are read and compared: changes are looked at."""
        self.ended = False
        self.states: dict[str, State] = {}


def needs_of(definition: Definition, margin: float) -> Needs:
    """Returns what the broker must hear: the cells of the area with its margin."""
    if definition.area is None:
        return Needs(frozenset(), definition.vendors or frozenset())
    cells = bus_cover(definition.area)
    bounds = definition.area.bounds()
    more = margin / METRES
    south, north = max(-90.0, bounds.south - more), min(90.0, bounds.north + more)
    if south > -89.0 and north < 89.0 and bounds.width < 300.0:
        # A hair wider than needed; the cells are kilometres wide.
        wide = more * 60
        west, east = (bounds.west - wide + 540.0) % 360.0 - 180.0, (bounds.east + wide + 540.0) % 360.0 - 180.0
        cells = cells | bus_cover(Box(south, west, north, east))
    return Needs(cells, frozenset())
