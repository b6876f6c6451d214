"""The vendors of this process: an error here shows a connected vendor as offline, or keeps one forever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.clocks import CLOCK_TOLERANCE
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors, Part
from streamer.live.vendor import Card, Presence

ME = "me"
OFFLINE = 1_000
LEAVE = 3_000
START = 1_000_000_000


class Process:
    """Local vendors, and the marks and changes that they reported."""

    def __init__(self) -> None:
        self.index = LiveIndex(ME, offline_after=OFFLINE, leave_after=LEAVE)
        self.marks: list[tuple[str, int]] = []
        self.changes = 0
        self.local_vendors = LocalVendors(self.index, lambda id, part: self.marks.append((id, part)), self.changed)

    def changed(self) -> None:
        self.changes += 1

    def marked(self) -> list[int]:
        """What was marked of "v" since the last look."""
        marks, self.marks = self.marks, []
        assert {id for id, _ in marks} <= {"v"}
        return [part for _, part in marks]

    def connect(self, now: int) -> None:
        self.local_vendors.connect("v", Card(now, "V", True, None), now)

    def online(self, now: int) -> bool:
        """Whether customers see the vendor online at a time."""
        self.index.expire(now)
        return "v" in self.index.vendors and self.index.vendors["v"].online


@pytest.fixture
def process() -> Process:
    return Process()


def test_connect_and_disconnect(process: Process) -> None:
    """A vendor is online while its socket is open and a while after; then it departs and nothing of it is kept."""
    process.connect(START)
    process.local_vendors.fix("v", Fix(START, 52.0, 21.0, None, None), START)
    assert process.marked() == [Part.ALL, Part.FIX]
    assert process.online(START + 100_000)
    process.local_vendors.disconnect("v", START + 100_000)
    assert process.marked() == [Part.PRESENCE]
    assert "v" in process.local_vendors
    assert process.online(START + 100_000 + OFFLINE - 1)
    assert not process.online(START + 100_000 + OFFLINE)
    assert process.index.expire(START + 100_000 + OFFLINE + LEAVE) == ["v"]
    assert process.local_vendors.release_expired("v")
    assert "v" not in process.local_vendors
    assert not process.local_vendors.release_expired("v")
    assert process.changes == 3


def test_two_sockets(process: Process) -> None:
    """An app that reconnects before its old socket is noticed dead stays online when that one ends."""
    process.connect(START)
    process.connect(START + 5)
    process.marked()
    process.local_vendors.disconnect("v", START + 10)
    assert process.marked() == []
    assert process.online(START + 100_000)
    assert not process.local_vendors.release_expired("v")
    process.local_vendors.disconnect("v", START + 100_000)
    assert not process.online(START + 100_000 + OFFLINE)


@pytest.mark.parametrize("step", [0, -50])
def test_reconnected_in_the_same_millisecond(process: Process, step: int) -> None:
    """A reconnect in the millisecond of the disconnect, or after the clock was set back, counts as the newest."""
    process.connect(START)
    process.local_vendors.disconnect("v", START)
    process.connect(START + step)
    assert process.online(START + 100_000)


def test_another_process_with_a_clock_ahead(process: Process) -> None:
    """A vendor that comes here from a process whose clock is ahead is here, whatever the clocks say."""
    process.index.owner_heard("other", START + 700, START)
    process.index.put_presence("v", Presence(START + 700, "other", 0), START)
    process.connect(START + 10)
    assert process.index.vendors["v"].presence.owner == ME
    assert not process.index.put_presence("v", Presence(START + 700, "other", START + 701), START + 20)
    assert process.online(START + 100_000)


def test_another_process_has_the_vendor_now(process: Process) -> None:
    """The end of a socket that was left for another process does not take the vendor offline."""
    process.connect(START)
    process.index.owner_heard("other", START + 5, START + 5)
    process.index.put_presence("v", Presence(START + 5, "other", 0), START + 5)
    process.marked()
    process.local_vendors.disconnect("v", START + 10)
    assert process.marked() == []
    process.index.owner_heard("other", START + 100_000, START + 100_000)
    assert process.online(START + 100_000)


@given(
    ahead=st.integers(CLOCK_TOLERANCE - 400, CLOCK_TOLERANCE + 400),
    pings=st.lists(st.tuples(st.integers(0, 2_000), st.integers(-200, 200)), min_size=2, max_size=20),
)
def test_a_phone_that_is_ahead_by_about_the_tolerance(ahead: int, pings: list[tuple[int, int]]) -> None:
    """Each newer ping of a phone whose clock is five seconds ahead is shown, on both sides of the tolerance."""
    process = Process()
    process.connect(START)
    now = timestamp = START
    for gap, jitter in pings:
        now += gap
        timestamp = max(timestamp + 1, now + ahead + jitter)
        process.local_vendors.fix("v", Fix(timestamp, 52.0, 21.0), now)
        assert process.index.vendors["v"].fix.timestamp == timestamp


@pytest.mark.parametrize("ahead", [0, 700])
def test_reclaim(process: Process, ahead: int) -> None:
    """When the newer connection elsewhere ends while an older one here is open, the vendor goes on being online."""
    process.connect(START)
    other = Presence(START + 5 + ahead, "other", START + 6 + ahead)
    assert process.index.put_presence("v", other, START + 10)
    process.marked()
    process.local_vendors.take_over("v", START + 10)
    assert process.marked() == [Part.ALL]
    assert process.online(START + 100_000)


def test_nothing_to_reclaim(process: Process) -> None:
    """Without an open socket here, a connection that ended elsewhere has ended."""
    process.connect(START)
    process.local_vendors.disconnect("v", START + 1)
    process.index.put_presence("v", Presence(START + 5, "other", START + 6), START + 6)
    process.marked()
    process.local_vendors.take_over("v", START + 10)
    process.local_vendors.take_over("unknown", START + 10)
    assert process.marked() == []
    assert not process.online(START + 6 + OFFLINE)


@pytest.mark.parametrize(
    ("presence", "http", "last"),
    [
        (Presence(START, "dead", START + 5), 0, START + 5),
        (Presence(START, "dead", 0), 0, START + 20),
        (Presence(START, "dead", START + 5), START + 9, START + 9),
        (Presence(0, "", 0), START + 9, START + 9),
    ],
)
def test_adopt(process: Process, presence: Presence, http: int, last: int) -> None:
    """A vendor that Redis lost, of a process that ended, leaves the map when it would have, and nothing is kept."""
    index, local_vendors = process.index, process.local_vendors
    index.put_card("v", Card(START, "V", True, None), START)
    index.put_fix("v", Fix(START, 52.0, 21.0, None, None), START)
    index.owner_heard("dead", START + 20, START + 20)
    if presence.owner:
        index.put_presence("v", presence, START)
    if http:
        index.put_http("v", http, START)
    vendor = index.vendors["v"]
    assert index.last_seen(vendor) == last
    local_vendors.adopt(vendor, START + 500)
    assert process.marked() == [Part.ALL]
    assert local_vendors.serves(vendor)
    assert process.online(last + OFFLINE - 1)
    assert not process.online(last + OFFLINE)
    assert index.expire(last + OFFLINE + LEAVE - 1) == []
    assert index.expire(last + OFFLINE + LEAVE) == ["v"]
    assert local_vendors.release_expired("v")
    assert "v" not in local_vendors


def test_two_processes_adopt_a_vendor(process: Process) -> None:
    """Both choose the same one, or counts would contain the vendor twice; a phone that comes back wins."""
    index, local_vendors = process.index, process.local_vendors
    index.put_presence("v", Presence(START, "dead", START + 5), START)
    local_vendors.adopt(index.vendors["v"], START + 500)
    index.put_presence("v", Presence(START + 1, "another", START + 5), START + 500)
    assert local_vendors.serves(index.vendors["v"]), "me > another"
    index.put_presence("v", Presence(START + 1, "the-third", START + 5), START + 500)
    assert not local_vendors.serves(index.vendors["v"])
    assert local_vendors.superseded("v")
    process.connect(START + 500)
    assert index.vendors["v"].presence == Presence(START + 500, ME, 0)


def test_only_newer_fixes(process: Process) -> None:
    """A late ping must move no vendor and must not be published."""
    process.connect(START)
    process.local_vendors.fix("v", Fix(START + 5, 52.0, 21.0, None, None), START)
    process.marked()
    changes = process.changes
    process.local_vendors.fix("v", Fix(START + 4, 53.0, 21.0, None, None), START)
    process.local_vendors.fix("v", Fix(START + 5, 53.0, 21.0, None, None), START)
    assert process.marked() == []
    assert process.changes == changes
    assert process.index.vendors["v"].fix.lat == 52.0


def test_http(process: Process) -> None:
    """A vendor that pings over HTTP is online a while after each ping, then departs."""
    card = Card(START, "V", True, None)
    process.local_vendors.http("v", card, START)
    process.local_vendors.fix("v", Fix(START, 52.0, 21.0, None, None), START)
    assert process.marked() == [Part.ALL, Part.FIX]
    process.local_vendors.http("v", card, START + 500)
    assert process.marked() == [Part.HTTP]
    assert process.online(START + 500 + OFFLINE - 1)
    assert not process.online(START + 500 + OFFLINE)
    assert process.index.expire(START + 500 + OFFLINE + LEAVE) == ["v"]
    assert process.local_vendors.release_expired("v")


def test_http_beside_a_socket(process: Process) -> None:
    """A ping over HTTP does not make a connected vendor one without a socket."""
    process.connect(START)
    process.local_vendors.http("v", Card(START, "V", True, None), START + 5)
    assert not process.local_vendors.release_expired("v")
    assert process.online(START + 100_000)


def test_card(process: Process) -> None:
    """A change of the card is published once, and only for vendors served here."""
    process.local_vendors.card("v", Card(START, "V", False, None), START)
    assert process.marked() == []
    assert "v" not in process.index.vendors
    process.connect(START)
    process.marked()
    process.local_vendors.card("v", Card(START + 1, "V", False, None), START)
    process.local_vendors.card("v", Card(START + 2, "V", False, None), START)
    assert process.marked() == [Part.CARD]


def test_deleted_while_connected(process: Process) -> None:
    """What a deleted vendor's socket still brings before it is closed leaves nothing behind."""
    process.connect(START)
    process.local_vendors.delete("v")
    process.marked()
    process.local_vendors.fix("v", Fix(START + 1, 52.0, 21.0, None, None), START)
    process.local_vendors.disconnect("v", START + 1)
    assert process.marked() == []
    assert "v" not in process.local_vendors
    assert process.index.vendors == {}


def test_a_socket_outlives_its_deleted_vendor(process: Process) -> None:
    """A socket that ends after its vendor was deleted does not count against what came since."""
    process.connect(START)
    process.local_vendors.delete("v")
    process.local_vendors.http("v", Card(START, "V", True, None), START)
    process.local_vendors.disconnect("v", START + 1)
    process.index.expire(START + OFFLINE)
    assert process.index.expire(START + OFFLINE + LEAVE) == ["v"]
    assert process.local_vendors.release_expired("v")


def test_taken_off_the_map_while_connected(process: Process) -> None:
    """A vendor that another process deleted is not kept when its socket here ends."""
    process.connect(START)
    process.index.remove("v")
    process.local_vendors.disconnect("v", START + 1)
    assert "v" not in process.local_vendors


@pytest.mark.parametrize("over_http", [True, False])
def test_a_vendor_that_comes_back_as_its_time_is_over(process: Process, over_http: bool) -> None:
    """Its new card comes before its new connection; without the card it would be on no map until that changes again."""
    process.connect(START)
    process.local_vendors.fix("v", Fix(START, 52.0, 21.0, None, None), START)
    process.local_vendors.disconnect("v", START)
    process.online(START + OFFLINE)
    back = START + OFFLINE + LEAVE
    card = Card(back, "V", False, None)
    (process.local_vendors.http if over_http else process.local_vendors.connect)("v", card, back)
    process.local_vendors.fix("v", Fix(back, 52.0, 21.0, None, None), back)
    assert process.online(back)
    assert process.index.vendors["v"].live
    assert "v" in process.local_vendors


@pytest.mark.parametrize("is_open", [True, False])
def test_a_vendor_that_closes_in_the_millisecond_in_which_it_came(is_open: bool) -> None:
    """Of two cards of one version the greater bytes win elsewhere; here it is known which came later."""
    index = LiveIndex("me")
    vendors = LocalVendors(index, lambda vendor_id, parts: None, lambda: None)
    vendors.connect("v", Card(1_000, "name", not is_open, None), 1_000)
    vendors.card("v", Card(1_000, "name", is_open, None), 1_000)
    assert index.vendors["v"].card.open is is_open
