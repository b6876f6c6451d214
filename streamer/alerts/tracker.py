"""Finds the alerts that a vendor's change may concern, among any number of them. Pure.

A vendor has an anchor: a position around which the alerts are known whose edge is within REACH, by the distance that
the vendor may move before it crosses each. A move looks at those that it may have crossed; a longer one finds a new
anchor. Most vendors stand still, and their positions scatter by metres: that costs one comparison.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from math import hypot

from streamer.alerts.alert import Alert, State
from streamer.alerts.edges import NEAR_POLE, REACH, EdgeGrid, edge_distance, holds
from streamer.alerts.plane import BAND, BAND_METRES, BEYOND, FLAT_ERROR, METRES, plane_of
from streamer.geo.grid import cover, cover_level
from streamer.geo.shapes import Box, Circle
from streamer.live.index import LiveIndex
from streamer.live.vendor import Vendor

Look = Callable[[Alert, str, bool, Vendor | None], None]
"""Takes an alert, a vendor's id, whether it is inside, and the vendor if it is live."""

FEW = 10
"""Alerts added at once for which the anchors around them are looked for; for more all are found anew."""
SWEPT = 500
"""Cells that are cleaned at once."""
NOWHERE = plane_of(0, False)
JITTER = 0.01
"""Metres added to a move for rounding."""


class Near:
    """Alerts in the order of how far a vendor may move from its anchor before it can cross their edge."""

    __slots__ = ("entries", "slacks")

    def __init__(self) -> None:
        self.slacks: list[float] = []
        self.entries: list[tuple[complex, float, Alert]] = []
        """Of each alert the centre and the radius at which it must be looked at exactly; zeros if it is no circle."""

    def fill(self, rows: list[tuple[float, int, complex, float, Alert]]) -> None:
        """Holds these alerts: slack, any number, centre, radius."""
        rows.sort()
        self.slacks = [row[0] for row in rows]
        self.entries = [row[2:] for row in rows]

    def put(self, slack: float, entry: tuple[complex, float, Alert]) -> None:
        """Adds an alert."""
        number = bisect_right(self.slacks, slack)
        self.slacks.insert(number, slack)
        self.entries.insert(number, entry)

    def take(self, alert: Alert) -> tuple[complex, float, Alert] | None:
        """Removes an alert and returns its entry, if it is there."""
        for number, entry in enumerate(self.entries):
            if entry[2] is alert:
                del self.slacks[number]
                return self.entries.pop(number)
        return None


class Track:
    """One vendor: its anchor, the alerts near it, and those that know it."""

    __slots__ = (
        "alerts",
        "anchor",
        "anchored",
        "inside",
        "lat",
        "live",
        "long",
        "other",
        "outside",
        "plane",
        "stretch",
        "wide",
        "x",
        "y",
    )

    def __init__(self) -> None:
        self.live = False
        self.lat = self.long = 0.0
        """Where it was looked at last."""
        self.anchored = -1
        """The generation of its anchor; negative: it has none."""
        self.plane = NOWHERE
        self.wide = NOWHERE.wide
        """Metres of a degree of longitude on the plane of the anchor."""
        self.stretch = 1.001
        """By how much distances on the plane may be too short."""
        self.anchor = 0j
        self.y = self.x = 0.0
        """The anchor, in degrees."""
        self.inside = Near()
        """Circles that it is in."""
        self.outside = Near()
        """Circles that it is not in."""
        self.other = Near()
        """Large circles, boxes and polygons."""
        self.alerts: dict[Alert, State] = {}
        """Alerts that hold a state of it, with that state."""


class Tracker:
    """All vendors of the live index, and this process's alerts that have begun."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._grid: EdgeGrid[Alert] = EdgeGrid()
        self._listed: dict[str, dict[Alert, None]] = {}
        self._tracks: dict[str, Track] = {}
        self._placed: set[Alert] = set()
        self._added: list[Alert] = []
        """Alerts that no anchor knows yet."""
        self._generation = 0
        """Of the anchors that hold; it grows when so many alerts were added that all are found anew."""

    def add(self, alert: Alert) -> None:
        """Adds an alert; `look` is to be called for the vendors that are in it already."""
        self._placed.add(alert)
        if alert.area is not None:
            self._grid.add(alert, alert.area)
        for vendor_id in alert.definition.vendors or ():
            self._listed.setdefault(vendor_id, {})[alert] = None
        if alert.area is not None:
            self._added.append(alert)

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
        self._track(vendor_id).alerts[alert] = state

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
        if self._added:
            self._forget_anchors()
        track = self._tracks.get(vendor.vendor_id)
        if not vendor.live:
            if track is not None:
                self._gone(vendor, track)
            return
        lat, long = vendor.shown.lat, vendor.shown.long
        if track is not None and track.live and not vendor.card_changed and abs(lat) < NEAR_POLE:
            if track.anchored == self._generation:
                point = complex(lat * METRES, (long % 360.0 if track.plane.far else long) * track.wide)
                moved = abs(point - track.anchor)
                if moved < REACH:
                    self._step(track, vendor, point, moved)
                    return
            # A step from where it was looked at last, so that nothing is passed over.
            if hypot((lat - track.lat) * METRES, (long - track.long) * METRES) < REACH:
                self._anchor(track)
                point = track.plane.point(lat, long)
                self._step(track, vendor, point, abs(point - track.anchor))
                return
        self._all(vendor)

    def _step(self, track: Track, vendor: Vendor, point: complex, moved: float) -> None:
        lat, long = track.lat, track.long = vendor.shown.lat, vendor.shown.long
        moved = moved * track.stretch + JITTER
        outside, inside, other = track.outside, track.inside, track.other
        found: list[Alert] = []
        if outside.slacks and outside.slacks[0] <= moved:
            some = outside.entries[: bisect_right(outside.slacks, moved)]
            found = [alert for centre, radius, alert in some if abs(centre - point) < radius]
        if inside.slacks and inside.slacks[0] <= moved:
            some = inside.entries[: bisect_right(inside.slacks, moved)]
            found += [alert for centre, radius, alert in some if abs(centre - point) > radius]
        if other.slacks and other.slacks[0] <= moved:
            found += [alert for _, _, alert in other.entries[: bisect_right(other.slacks, moved)]]
        for alert in found:
            area, state = alert.area, track.alerts.get(alert)
            assert area is not None
            was = state is not None and state.known.seen.inside
            holding = area.contains(lat, long)
            if holding is was or not alert.placed or (was and holds(area, alert.margin, True, lat, long)):
                continue
            self._look(alert, vendor.vendor_id, holding, vendor)
            self._replace(track, alert)

    def _replace(self, track: Track, alert: Alert) -> None:
        """Finds anew how far from the anchor a vendor may be before an alert that it just changed for changes again."""
        area, state = alert.area, track.alerts.get(alert)
        assert area is not None
        is_inside = state is not None and state.known.seen.inside
        slack = 0.0
        if is_inside and not area.contains(track.y, track.x):
            # It came in. Back at the anchor it would be in the margin, so it leaves beyond that only.
            slack = max(0.0, 0.95 * (alert.margin - edge_distance(area, track.y, track.x)) - 0.5)
        if (entry := track.other.take(alert)) is not None:
            track.other.put(slack, entry)
        elif (entry := track.outside.take(alert) or track.inside.take(alert)) is not None:
            self._put(track, slack, entry[0], alert, is_inside)

    def _put(self, track: Track, slack: float, centre: complex, alert: Alert, is_inside: bool) -> None:
        area = alert.area
        assert isinstance(area, Circle)
        error = track.plane.error(area.radius)
        if is_inside:
            track.inside.put(slack, (centre, area.radius + alert.margin - error, alert))
        else:
            track.outside.put(slack, (centre, area.radius + error, alert))

    def _anchor(self, track: Track) -> None:
        """Finds the alerts whose edge is near where the vendor was looked at last."""
        lat, long = track.y, track.x = track.lat, track.long
        plane = plane_of(round(lat / BAND), abs(long) > 90.0)
        if plane is not track.plane:
            track.plane, track.wide = plane, plane.wide
            track.stretch = 1.001 + plane.bend * 2 * BAND_METRES
        track.anchored = self._generation
        point = track.anchor = plane.point(lat, long)
        inside: list[tuple[float, int, complex, float, Alert]] = []
        outside: list[tuple[float, int, complex, float, Alert]] = []
        other: list[tuple[float, int, complex, float, Alert]] = []
        known, bend = track.alerts, plane.bend
        number = 0
        for circles in self._grid.circles_at(lat, long, plane):
            for alert, centre, radius, off in circles.within(point, REACH):
                number += 1
                reach = radius + BEYOND
                error = bend * reach * (reach + BAND_METRES) + FLAT_ERROR
                state = known.get(alert)
                if state is not None and state.known.seen.inside:
                    slack = alert.margin - off - error
                    if slack < REACH:
                        inside.append((slack, number, centre, radius + alert.margin - error, alert))
                else:
                    slack = abs(off) - error
                    if slack < REACH:
                        outside.append((slack, number, centre, radius + error, alert))
            for alert in circles.other:
                area = alert.area
                assert area is not None
                off = edge_distance(area, lat, long)
                state = known.get(alert)
                if state is not None and state.known.seen.inside:
                    slack = alert.margin + (off if area.contains(lat, long) else -off) - FLAT_ERROR
                else:
                    slack = off - FLAT_ERROR
                if slack < REACH:
                    number += 1
                    other.append((slack, number, 0j, 0.0, alert))
        track.inside.fill(inside)
        track.outside.fill(outside)
        track.other.fill(other)

    def _all(self, vendor: Vendor) -> None:
        """Looks at every alert that the vendor is in, or was in."""
        vendor_id = vendor.vendor_id
        track = self._track(vendor_id)
        track.live = True
        track.anchored = -1
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
        track.anchored = -1
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

    def _forget_anchors(self) -> None:
        """Has the anchors found anew around the alerts that were added."""
        added, self._added = self._added, []
        around = [surroundings(alert) for alert in added] if len(added) <= FEW else [None]
        if None in around:
            self._generation += 1
            return
        for track in self._tracks.values():
            if any(box is not None and box.contains(track.y, track.x) for box in around):
                track.anchored = -1


def surroundings(alert: Alert) -> Box | None:
    """Returns a box that contains every anchor for which an alert matters; None where that could be anywhere."""
    assert alert.area is not None
    bounds = alert.area.bounds()
    spread = (REACH + alert.margin + 1.0) / METRES
    south, north = bounds.south - spread, bounds.north + spread
    wide = 12 * spread
    if south < -85.0 or north > 85.0 or bounds.width + 2 * wide >= 360.0:
        return None
    west, east = (bounds.west - wide + 540.0) % 360.0 - 180.0, (bounds.east + wide + 540.0) % 360.0 - 180.0
    return Box(south, west, north, east)
