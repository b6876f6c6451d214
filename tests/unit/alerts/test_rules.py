"""The state machine of one alert and one vendor, held against a plain model."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from streamer.alerts.rules import OUTSIDE, Seen, State, begin, happened, quiet_until, step
from streamer.geo.shapes import Circle
from streamer.protocol.alerts import EVENTS, Definition

NOW = 1_800_000_000_000


def definition(**changed: Any) -> Definition:
    given: dict[str, Any] = {
        "area": Circle(52.0, 21.0, 500.0),
        "vendors": None,
        "open": False,
        "on": frozenset(EVENTS),
        "quiet": 0,
        **changed,
    }
    return Definition(**given)


def told(wanted: Definition, *looks: Seen, every: int = 1000, first: Seen | None = None) -> list[str]:
    state = OUTSIDE if first is None else begin(wanted, first)
    found = []
    for number, seen in enumerate(looks):
        stepped = step(wanted, state, seen, NOW + number * every)
        if stepped is not None:
            state, events = stepped
            found += [kind for kind, _ in events]
    return found


AWAY = Seen(False, True, True)
OPEN = Seen(True, True, True)
CLOSED = Seen(True, False, True)


def test_who_is_there_when_an_alert_begins_is_no_event() -> None:
    """Otherwise each alert would begin with a burst of events that did not happen."""
    assert told(definition(), OPEN, OPEN, first=OPEN) == []
    assert told(definition(), AWAY, first=OPEN) == ["left"]


def test_entering_leaving_opening_and_closing() -> None:
    """The events of the contract."""
    assert told(definition(), OPEN, CLOSED, OPEN, AWAY) == ["entered", "closed", "opened", "left"]
    assert told(definition(), OPEN, OPEN._replace(online=False), OPEN) == ["entered", "offline", "online"]


def test_with_the_filter_who_opens_enters() -> None:
    """A favourite that opens where it stands is the usual reason for an alert."""
    wanted = definition(open=True)
    assert told(wanted, CLOSED, OPEN, CLOSED, AWAY) == ["entered", "opened", "left", "closed"]
    only = definition(open=True, on=frozenset({"opened"}))
    assert told(only, CLOSED, OPEN) == ["opened"]


def test_a_vendor_that_comes_open_has_not_opened() -> None:
    """A vendor that enters while open may have been open for hours elsewhere, so `opened` would be wrong."""
    assert told(definition(), AWAY, OPEN) == ["entered"]


def test_the_same_event_is_quiet_for_a_while() -> None:
    """Otherwise a vendor that walks along an edge would cause an event each minute."""
    wanted = definition(quiet=10_000)
    assert told(wanted, OPEN, AWAY, OPEN, AWAY) == ["entered", "left"]
    assert told(wanted, OPEN, AWAY, OPEN, AWAY, every=6_000) == ["entered", "left", "entered", "left"]


def test_events_of_one_vendor_have_an_order() -> None:
    """Ids begin with the time: without a tie-break, two events in one millisecond would arrive in the wrong order."""
    wanted = definition(open=True)
    stepped = step(wanted, begin(wanted, CLOSED), OPEN, NOW)
    assert stepped is not None
    state, events = stepped
    assert [at for _, at in events] == [NOW, NOW + 1]
    following = step(wanted, state, AWAY, NOW)
    assert following is not None
    assert following[1][0][1] == NOW + 2


looks = st.lists(st.builds(Seen, st.booleans(), st.booleans(), st.booleans()), max_size=30)


@given(looks, st.booleans(), st.sets(st.sampled_from(EVENTS)), st.integers(0, 5), st.booleans())
@example(
    [CLOSED._replace(online=False), OPEN, AWAY, CLOSED._replace(online=False), CLOSED], False, set(EVENTS), 3, False
)
def test_it_is_the_plain_model(seen: list[Seen], only_open: bool, on: set[str], quiet: int, begun: bool) -> None:
    """The model remembers everything and knows no shortcut: each look is compared with the one before."""
    wanted = definition(open=only_open, on=frozenset(on), quiet=quiet * 1000)
    first = seen[0] if begun and seen else AWAY
    expected: list[tuple[str, int]] = []
    last: dict[str, int] = {}
    before = first if first.inside else Seen(False, False, False)
    for number, look in enumerate(seen):
        now = NOW + number * 1000
        after = look if look.inside else Seen(False, False, False)
        for kind in happened(only_open, before, after):
            if kind in on and now - last.get(kind, 0) >= quiet * 1000:
                expected.append((kind, number))
                last[kind] = now
        before = after
    state = begin(wanted, first) if begun else OUTSIDE
    found: list[tuple[str, int]] = []
    times: list[int] = []
    for number, look in enumerate(seen):
        stepped = step(wanted, state, look, NOW + number * 1000)
        if stepped is not None:
            state, events = stepped
            found += [(kind, number) for kind, _ in events]
            times += [at for _, at in events]
    assert found == expected
    assert times == sorted(set(times))


@given(looks, st.sets(st.sampled_from(EVENTS)), st.integers(1, 29))
def test_what_is_stored_is_enough_for_whoever_takes_over(seen: list[Seen], on: set[str], at: int) -> None:
    """A process that reads the state goes on as the one before would have: no event missed, none invented."""
    wanted = definition(on=frozenset(on), quiet=3000)

    def run(handed_over: bool) -> list[str]:
        state, found = OUTSIDE, []
        for number, look in enumerate(seen):
            if handed_over and number == at:
                state = State(Seen(*state.seen), dict(state.told), state.event_at)
            if (stepped := step(wanted, state, look, NOW + number * 1000)) is not None:
                state, events = stepped
                found += [kind for kind, _ in events]
        return found

    assert run(True) == run(False)


def test_a_state_matters_until_its_last_quiet_time_has_passed() -> None:
    """If it were deleted too early, an event would be sent twice within its quiet time."""
    wanted = definition(quiet=10_000)
    assert quiet_until(wanted, State(AWAY, {"entered": NOW, "left": NOW + 5}, NOW)) == NOW + 10_005
    assert quiet_until(wanted, OUTSIDE) == 0
