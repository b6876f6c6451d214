"""Finds the alerts that a vendor's change may affect, among any number of them. Pure.

For each vendor it keeps the cells of the grid that it is in, and a border: the side of every edge in these cells on
which the vendor is. The moves of many vendors are compared with their borders at once; crossed edges are then tested
exactly. So are, in a new cell, alerts that contain all of the cell or none of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter

from streamer.alerts.alert import Alert, State
from streamer.alerts.circles import Border, Circles, crossed
from streamer.alerts.edges import EVERYWHERE, EdgeCell, EdgeGrid, edge_distance, holds
from streamer.geo.grid import cover, cover_level
from streamer.geo.shapes import distance
from streamer.live.index import LiveIndex
from streamer.live.vendor import Card, Vendor

Look = Callable[[Alert, str, bool, Vendor | None], None]
"""Called with an alert, a vendor's id, whether it is inside, and the vendor if it is live."""

JITTER = 0.11
"""Metres added to a move for rounding."""
ANCHORED = 25.0
"""Metres after which a vendor gets a new anchor."""

_slack = itemgetter(0)


class Track:
    """One vendor: the alerts and cells that it is in, and its borders there."""

    __slots__ = ("anchor", "bounds", "card", "cells", "inside", "live", "made", "near", "online", "others", "versions")

    def __init__(self) -> None:
        self.live = False
        self.card: Card | None = None
        self.online = False
        self.inside: set[Alert] = set()
        """Alerts in whose state it is inside."""
        self.cells: list[EdgeCell[Alert]] = []
        """The cells that it is in."""
        self.versions: list[int] = []
        self.bounds = EVERYWHERE
        """The bounds within which these cells are valid."""
        self.made = -1
        """The grid's number of created cells when these were found; negative: they must be found again."""
        self.near: list[tuple[Circles[Alert], Border]] = []
        """The circles of the cells, if there are any, and on which side of each it is."""
        self.others: list[tuple[float, Alert]] = []
        """Boxes and polygons of the cells, by how far it may move from the anchor before it crosses their edge."""
        self.anchor = (0.0, 0.0)


class Tracker:
    """All vendors of the live index, and this process's started alerts."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._grid: EdgeGrid[Alert] = EdgeGrid()
        self._listed: dict[str, dict[Alert, None]] = {}
        self._tracks: dict[str, Track] = {}
        self._placed: set[Alert] = set()

    def add(self, alert: Alert) -> None:
        """Adds an alert; call `look` for the vendors that are inside already."""
        self._placed.add(alert)
        if alert.area is not None:
            self._grid.add(alert, alert.area)
        for vendor_id in alert.definition.vendors or ():
            self._listed.setdefault(vendor_id, {})[alert] = None

    def remove(self, alert: Alert) -> None:
        """Removes an alert with its states."""
        for vendor_id in list(alert.states):
            self.drop(alert, vendor_id)
        if alert not in self._placed:
            return
        self._placed.discard(alert)
        self._grid.remove(alert)
        for vendor_id in alert.definition.vendors or ():
            alerts = self._listed[vendor_id]
            del alerts[alert]
            if not alerts:
                del self._listed[vendor_id]

    def keep(self, alert: Alert, vendor_id: str, state: State) -> None:
        """Stores a vendor's state in an alert; to be called again when the state has changed."""
        alert.states[vendor_id] = state
        if state.known.seen.inside:
            self._track(vendor_id).inside.add(alert)
        else:
            self._outside(alert, vendor_id)

    def drop(self, alert: Alert, vendor_id: str) -> None:
        """Removes a vendor's state from an alert."""
        alert.states.pop(vendor_id, None)
        self._outside(alert, vendor_id)

    def inside(self, alert: Alert, index: LiveIndex) -> Iterator[Vendor]:
        """Yields the live vendors inside an alert now."""
        if alert.area is None:
            for vendor_id in alert.definition.vendors or ():
                vendor = index.vendors.get(vendor_id)
                if vendor is not None and vendor.live:
                    yield vendor
            return
        level = cover_level(alert.area)
        cells = index.cells(level)
        covered = cover(alert.area, level)
        for id in (*covered.full, *covered.boundary):
            cell = cells.get(id)
            if cell is not None:
                yield from [v for v in cell.vendors if alert.area.contains(v.shown.lat, v.shown.long)]

    def look(self, alert: Alert, vendor: Vendor) -> None:
        """Evaluates a live vendor for one alert."""
        inside = True
        if alert.area is not None:
            state = alert.states.get(vendor.vendor_id)
            was = state is not None and state.known.seen.inside
            inside = holds(alert.area, alert.margin, was, vendor.shown.lat, vendor.shown.long)
        self._look(alert, vendor.vendor_id, inside, vendor)

    def follows(self, vendor: Vendor) -> bool:
        """Returns whether a vendor was evaluated since it appeared; a new one costs more."""
        track = self._tracks.get(vendor.vendor_id)
        return track is not None and track.live

    def changed(self, vendors: Iterable[Vendor]) -> None:
        """Evaluates vendors that changed or left the live index, for all alerts that may be affected."""
        borders: list[Border] = []
        of: list[tuple[Vendor, Track, Circles[Alert]]] = []
        positions: list[tuple[float, float]] = []
        for vendor in vendors:
            track = self._tracks.get(vendor.vendor_id)
            if not vendor.live:
                if track is not None:
                    self._gone(vendor, track)
                continue
            if track is None or not track.live or track.card is not vendor.card or track.online is not vendor.online:
                track = self._renewed(vendor)
            position = vendor.shown.lat, vendor.shown.long
            if not self._stays(track, *position):
                self._enter(track, vendor)
            elif track.others:
                self._step(track, vendor)
            for circles, border in track.near:
                borders.append(border)
                positions.append(position)
                of.append((vendor, track, circles))
        if not borders:
            return
        for number, column in crossed(borders, positions):
            vendor, track, circles = of[number]
            alert = circles.items[column]
            self.look(alert, vendor)
            circles.turn(borders[number], column, is_inside=alert in track.inside)

    def _renewed(self, vendor: Vendor) -> Track:
        """Evaluates a vendor that appeared, or whose card changed, for the alerts that it is in or that list it."""
        track = self._track(vendor.vendor_id)
        listed = () if track.live else self._listed.get(vendor.vendor_id, ())
        track.live, track.card, track.online = True, vendor.card, vendor.online
        for alert in {*track.inside, *listed}:
            self.look(alert, vendor)
        return track

    def _stays(self, track: Track, lat: float, long: float) -> bool:
        """Returns whether the cells that a vendor was in are good for where it is now."""
        south, north, west, east = track.bounds
        if not (south < lat < north and west < long < east):
            return False
        if track.made != self._grid.made:
            # Most new cells are elsewhere.
            cells, bounds = self._grid.at(lat, long)
            if track.made < 0 or track.cells != cells:
                return False
            track.made, track.bounds = self._grid.made, bounds
        return [cell.version for cell in track.cells] == track.versions

    def _enter(self, track: Track, vendor: Vendor) -> None:
        """Updates the cells of a vendor, and evaluates the alerts that its border does not cover."""
        cells, track.bounds = self._grid.at(vendor.shown.lat, vendor.shown.long)
        track.cells = cells
        track.versions = [cell.version for cell in cells]
        track.made = self._grid.made
        edges = {alert for cell in cells for alert in cell.edges}
        whole = {alert for cell in cells for alert in cell.whole}
        for alert in whole - track.inside:
            self.look(alert, vendor)
        for alert in track.inside - edges - whole:
            self.look(alert, vendor)
        track.others = [(0.0, alert) for cell in cells for alert in cell.other]
        for _, alert in track.others:
            self.look(alert, vendor)
        track.near = [(some, some.border(track.inside)) for cell in cells if (some := cell.circles()).items]
        self._anchor(track, vendor)

    def _step(self, track: Track, vendor: Vendor) -> None:
        """Evaluates the boxes and polygons whose edge a vendor may have crossed since its anchor."""
        moved = distance(vendor.shown.lat, vendor.shown.long, *track.anchor) + JITTER
        for number in range(bisect_right(track.others, moved, key=_slack)):
            alert = track.others[number][1]
            was = alert in track.inside
            self.look(alert, vendor)
            if (alert in track.inside) is not was:
                # The vendor may cross it back anywhere, so it is tested each time until there is a new anchor.
                del track.others[number]
                track.others.insert(0, (0.0, alert))
        if moved > ANCHORED:
            self._anchor(track, vendor)

    def _anchor(self, track: Track, vendor: Vendor) -> None:
        """Computes how far a vendor may move before it crosses each of the boxes and polygons of its cells."""
        lat, long = track.anchor = vendor.shown.lat, vendor.shown.long
        others = [(slack(alert, alert in track.inside, lat, long), alert) for _, alert in track.others]
        track.others = sorted(others, key=_slack)

    def _gone(self, vendor: Vendor, track: Track) -> None:
        track.live = False
        track.made = -1
        for alert in list(track.inside):
            self._look(alert, vendor.vendor_id, False, vendor)
        if not track.inside:
            self._tracks.pop(vendor.vendor_id, None)

    def _track(self, vendor_id: str) -> Track:
        track = self._tracks.get(vendor_id)
        if track is None:
            track = self._tracks[vendor_id] = Track()
        return track

    def _outside(self, alert: Alert, vendor_id: str) -> None:
        track = self._tracks.get(vendor_id)
        if track is not None:
            track.inside.discard(alert)
            if not (track.live or track.inside):
                del self._tracks[vendor_id]


def slack(alert: Alert, is_inside: bool, lat: float, long: float) -> float:
    """Returns the minimum metres that a vendor must move to enter, or to leave the area and its margin."""
    assert alert.area is not None
    off = edge_distance(alert.area, lat, long)
    if not is_inside:
        return off
    return alert.margin + (off if alert.area.contains(lat, long) else -off)
