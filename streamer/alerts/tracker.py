"""Finds the alerts that a vendor's change may concern, among any number of them. Pure.

A vendor has an anchor: a position around which the alerts are known whose edge is within REACH, by the distance that
the vendor may move before it crosses each. A move looks at those that it may have crossed; a longer one finds a new
anchor. Most vendors stand still, and their positions scatter by metres: that costs one comparison.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from math import cos, hypot, pi, tan

from streamer.alerts.alert import Alert, State
from streamer.alerts.edges import METRES, NEAR_POLE, REACH, EdgeGrid, edge_distance, holds
from streamer.geo.grid import cover, cover_level
from streamer.geo.shapes import EARTH_RADIUS, Circle
from streamer.live.index import LiveIndex
from streamer.live.vendor import Vendor

Look = Callable[[Alert, str, bool, Vendor | None], None]
"""Takes an alert, a vendor's id, whether it is inside, and the vendor if it is live."""

FLAT = 2000.0
"""Metres of radius up to which a circle is compared on a plane."""
FLAT_ERROR = 0.1
"""Metres for rounding; what a plane errs by at the distance of the radius is added."""
SWEPT = 500
"""Cells that are cleaned at once."""
JITTER = 0.01
"""Metres added to a move for rounding."""

_RADIAN = pi / 180


class Track:
    """One vendor: its anchor, the alerts near it, and those that know it."""

    __slots__ = ("alerts", "bend", "lat", "live", "long", "near", "slacks", "wide", "x", "y")

    def __init__(self) -> None:
        self.live = False
        self.lat = self.long = 0.0
        """Where it was looked at last."""
        self.wide = -1.0
        """Metres of a degree of longitude at the anchor; negative: there is no anchor."""
        self.bend = 0.0
        """What a plane there errs by, per square metre of distance."""
        self.y = self.x = 0.0
        """The anchor, degrees."""
        self.near: list[Alert] = []
        self.slacks: list[float] = []
        self.alerts: dict[Alert, None] = {}
        """Alerts that hold a state of it."""


class Tracker:
    """All vendors of the live index, and this process's alerts that have begun."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._grid: EdgeGrid[Alert] = EdgeGrid()
        self._listed: dict[str, dict[Alert, None]] = {}
        self._tracks: dict[str, Track] = {}
        self._placed: set[Alert] = set()

    def add(self, alert: Alert) -> None:
        """Adds an alert; `look` is to be called for the vendors that are in it already."""
        self._placed.add(alert)
        if alert.area is not None:
            self._grid.add(alert, alert.area)
        for vendor_id in alert.definition.vendors or ():
            self._listed.setdefault(vendor_id, {})[alert] = None
        self._forget_anchors(alert)

    def remove(self, alert: Alert) -> None:
        """Removes an alert with all that it knows of vendors."""
        for vendor_id in list(alert.states):
            self.drop(alert, vendor_id)
        if alert not in self._placed:
            return
        self._placed.discard(alert)
        if alert.area is not None:
            self._grid.remove(alert)
        for vendor_id in alert.definition.vendors or ():
            alerts = self._listed[vendor_id]
            del alerts[alert]
            if not alerts:
                del self._listed[vendor_id]

    def keep(self, alert: Alert, vendor_id: str, state: State) -> None:
        """Has an alert hold a state of a vendor."""
        alert.states[vendor_id] = state
        self._track(vendor_id).alerts[alert] = None

    def drop(self, alert: Alert, vendor_id: str) -> None:
        """Has an alert forget a vendor."""
        alert.states.pop(vendor_id, None)
        track = self._tracks.get(vendor_id)
        if track is not None:
            track.alerts.pop(alert, None)
            if not (track.live or track.alerts):
                del self._tracks[vendor_id]

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
        """Looks at a live vendor for one alert."""
        area = alert.area
        if area is None:
            inside = True
        else:
            state = alert.states.get(vendor.vendor_id)
            was = state is not None and state.known.seen.inside
            inside = holds(area, alert.margin, was, vendor.shown.lat, vendor.shown.long)
        self._look(alert, vendor.vendor_id, inside, vendor)

    def changed(self, vendor: Vendor) -> None:
        """Looks at a vendor of the live index that changed, or left it, for all alerts that this may concern."""
        track = self._tracks.get(vendor.vendor_id)
        if not vendor.live:
            if track is not None:
                self._gone(vendor, track)
            return
        lat, long = vendor.shown.lat, vendor.shown.long
        if track is not None and track.live and not vendor.card_changed and abs(lat) < NEAR_POLE:
            if track.wide >= 0.0:
                moved = hypot((lat - track.y) * METRES, (long - track.x) * track.wide)
                if moved < REACH:
                    self._step(track, vendor, moved)
                    return
            # A step from where it was looked at last, so that nothing is passed over.
            if hypot((lat - track.lat) * METRES, (long - track.long) * METRES) < REACH:
                self._anchor(vendor.vendor_id, track)
                self._step(track, vendor, hypot((lat - track.y) * METRES, (long - track.x) * track.wide))
                return
        self._all(vendor)

    def _step(self, track: Track, vendor: Vendor, moved: float) -> None:
        track.lat, track.long = vendor.shown.lat, vendor.shown.long
        slacks = track.slacks
        moved = moved * 1.001 + JITTER
        if not slacks or moved < slacks[0]:
            return
        lat, long, vendor_id = track.lat, track.long, vendor.vendor_id
        wide, bend = track.wide, track.bend
        looked = []
        for alert in track.near[: bisect_right(slacks, moved)]:
            area = alert.area
            assert area is not None
            state = alert.states.get(vendor_id)
            was = state is not None and state.known.seen.inside
            if type(area) is Circle and area.radius <= FLAT:
                # Most are far enough from where they would change: a plane tells.
                east = area.long - long
                if -180.0 <= east <= 180.0:
                    outside = hypot((area.lat - lat) * METRES, east * wide) - area.radius
                    error = bend * (area.radius + 4 * REACH) ** 2 + FLAT_ERROR
                    if outside < alert.margin - error if was else outside > error:
                        continue
            inside = area.contains(lat, long)
            if inside is was or not alert.placed or (was and holds(area, alert.margin, True, lat, long)):
                continue
            self._look(alert, vendor_id, inside, vendor)
            looked.append(alert)
        for alert in looked:
            self._replace(track, alert, vendor_id)

    def _replace(self, track: Track, alert: Alert, vendor_id: str) -> None:
        """Finds anew how far from the anchor a vendor may be before an alert that it just changed for changes again."""
        number = track.near.index(alert)
        del track.near[number], track.slacks[number]
        area, state = alert.area, alert.states.get(vendor_id)
        assert area is not None
        slack = 0.0
        if state is not None and state.known.seen.inside and not area.contains(track.y, track.x):
            # It came in. Back at the anchor it would be in the margin, so it leaves beyond that only.
            slack = max(0.0, 0.95 * (alert.margin - edge_distance(area, track.y, track.x)) - 0.5)
        number = bisect_right(track.slacks, slack)
        track.near.insert(number, alert)
        track.slacks.insert(number, slack)

    def _anchor(self, vendor_id: str, track: Track) -> None:
        """Finds the alerts whose edge is near where the vendor was looked at last."""
        lat, long = track.lat, track.long
        track.y, track.x = lat, long
        wide = track.wide = METRES * cos(lat * _RADIAN)
        bend = track.bend = abs(tan(lat * _RADIAN)) / EARTH_RADIUS
        found: list[tuple[float, int, Alert]] = []
        number = 0
        for cell in self._grid.at(lat, long):
            for alert in cell.edges:
                area, margin = alert.area, alert.margin
                assert area is not None
                if type(area) is Circle and area.radius <= FLAT:
                    east = area.long - long
                    if not -180.0 <= east <= 180.0:
                        east = (east + 180.0) % 360.0 - 180.0
                    outside = hypot((area.lat - lat) * METRES, east * wide) - area.radius
                    error = bend * (area.radius + 2 * REACH) ** 2 + FLAT_ERROR
                    if not -REACH - error < outside < REACH + margin + error:
                        continue
                else:
                    outside, error = edge_distance(area, lat, long), FLAT_ERROR
                    if area.contains(lat, long):
                        outside = -outside
                # A vendor that is inside crosses the outer side of the margin next, another one the edge.
                state = alert.states.get(vendor_id)
                slack = (margin - outside if state is not None and state.known.seen.inside else abs(outside)) - error
                if slack < REACH:
                    number += 1
                    found.append((slack, number, alert))
        found.sort()
        track.near = [alert for _, _, alert in found]
        track.slacks = [slack for slack, _, _ in found]

    def _all(self, vendor: Vendor) -> None:
        """Looks at every alert that the vendor is in, or was in."""
        vendor_id = vendor.vendor_id
        track = self._track(vendor_id)
        track.live = True
        track.wide = -1.0
        lat, long = track.lat, track.long = vendor.shown.lat, vendor.shown.long
        known = list(track.alerts)
        alerts = track.alerts
        for cell in self._grid.at(lat, long):
            for alert in cell.edges:
                if alert not in alerts:
                    area = alert.area
                    assert area is not None
                    if area.contains(lat, long):
                        self._look(alert, vendor_id, True, vendor)
            for alert in cell.whole:
                if alert not in alerts:
                    self._look(alert, vendor_id, True, vendor)
        for alert in self._listed.get(vendor_id, ()):
            if alert not in alerts:
                self._look(alert, vendor_id, True, vendor)
        for alert in known:
            self.look(alert, vendor)

    def _gone(self, vendor: Vendor, track: Track) -> None:
        track.live = False
        track.wide = -1.0
        for alert in list(track.alerts):
            state = alert.states[vendor.vendor_id]
            if state.known.seen.inside:
                self._look(alert, vendor.vendor_id, False, vendor)
        if not track.alerts:
            self._tracks.pop(vendor.vendor_id, None)

    def sweep(self) -> None:
        """Frees some of what is left of alerts that were removed; to be called each second."""
        self._grid.sweep(SWEPT)

    def _track(self, vendor_id: str) -> Track:
        track = self._tracks.get(vendor_id)
        if track is None:
            track = self._tracks[vendor_id] = Track()
        return track

    def _forget_anchors(self, alert: Alert) -> None:
        """Has the anchors found anew around an alert that was added."""
        for track in self._tracks.values():
            track.wide = -1.0
