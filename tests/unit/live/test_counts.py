"""Counts of vendors: groups that do not add up to the vendors in a view make the map wrong at every zoom."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.geo.grid import Cover, cover
from streamer.geo.shapes import Area, Box, Circle, Polygon
from streamer.live.counts import AT_ONCE, CellSums, Counter, CountsView, Sums, add, counts_key
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import LocalVendors
from streamer.live.vendor import Card, Presence

NOW = 1_790_000_000_000
WORLD = Box(-90.0, -180.0, 90.0, 180.0)

lats = st.floats(-90, 90) | st.sampled_from([-90.0, 0.0, 52.24, 89.99, 90.0])
longs = st.floats(-180, 180) | st.sampled_from([-180.0, 0.0, 21.12, 179.999, 180.0])
boxes = st.builds(lambda a, b, west, east: Box(min(a, b), west, max(a, b), east), lats, lats, longs, longs)
areas: st.SearchStrategy[Area] = (
    boxes
    | st.just(WORLD)
    | st.builds(Circle, lats, longs, st.sampled_from([500.0, 20_000.0, 100_000.0]))
    | st.just(Polygon(((20.0, 52.0), (22.0, 52.1), (21.0, 53.0))))
)


def put(index: LiveIndex, id: str, lat: float, long: float, owner: str = "me", is_open: bool = True) -> None:
    """A vendor that is connected."""
    index.put_card(id, Card(NOW, id, is_open, None), NOW)
    index.owner_heard(owner, NOW, NOW)
    index.put_presence(id, Presence(NOW, owner, 0), NOW)
    index.put_fix(id, Fix(NOW, lat, long), NOW)


def fleet(seed: int, count: int = 300) -> LiveIndex:
    """Vendors everywhere, most of them in one town, some at the edges of the world."""
    chance, index = random.Random(seed), LiveIndex("me")
    for number in range(count):
        if number % 3:
            at = 52.0 + chance.random(), 21.0 + chance.random()
        else:
            at = chance.uniform(-90, 90), chance.uniform(-180, 180)
        at = chance.choice([at, at, at, (90.0, at[1]), (at[0], 180.0), (at[0], -180.0)])
        put(index, f"v{number}", *at, owner=chance.choice(["me", "you"]), is_open=chance.random() < 0.7)
    return index


def counted(counter: Counter, cells: CellSums) -> dict[int, Sums]:
    """The sums by group, all steps at once."""
    groups: dict[int, Sums] = {}
    for _ in counter.steps(cells, groups):
        pass
    return groups


@given(st.integers(0, 5), areas, st.sampled_from([16, 200, 1000]), st.booleans())
def test_the_counts_add_up_to_the_vendors_of_a_watch(seed: int, area: Area, detail: int, only_open: bool) -> None:
    """Whoever zooms from bubbles to vendors must not find more or fewer of them."""
    index = fleet(seed)
    key = counts_key(area, detail, only_open)
    groups: dict[int, Sums] = {}
    for mine in (lambda v: v.presence.owner == "me", lambda v: v.presence.owner == "you"):  # two processes
        for group, sums in counted(Counter(key), CellSums(index, mine)).items():
            groups[group] = add(groups.get(group, [0, 0, 0, 0, 0]), sums)
    shown = [
        v for v in index.vendors.values() if area.contains(v.fix.lat, v.fix.long) and (v.card.open or not only_open)
    ]
    assert sum(sums[0] for sums in groups.values()) == len(shown)
    assert sum(sums[1] for sums in groups.values()) == sum(vendor.card.open for vendor in shown)
    assert sum(sums[2] for sums in groups.values()) == len(shown)
    for count, _, _, lat, long in groups.values():
        assert -90 <= lat / count <= 90
        assert -180 <= long / count <= 180


@given(areas, st.integers(16, 1000))
def test_there_are_at_most_about_so_many_groups(area: Area, detail: int) -> None:
    """A phone asks for as many bubbles as it can draw."""
    assert (
        len(counted(Counter(counts_key(area, detail, False)), CellSums(fleet(1), lambda _: True))) <= detail * 1.3 + 4
    )


def test_an_area_is_covered_in_a_step_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may ask for hundreds of areas at once; each takes milliseconds."""
    covered: list[Area] = []

    def noted(area: Area, level: int) -> Cover:
        covered.append(area)
        return cover(area, level)

    monkeypatch.setattr("streamer.live.counts.cover", noted)
    index, groups = fleet(1), dict[int, Sums]()
    counter = Counter(counts_key(Circle(52.0, 21.0, 50_000.0), 8, False))
    assert not covered
    cells = CellSums(index, lambda _: True)
    next(counter.steps(cells, groups))
    assert (len(covered), groups) == (1, {})
    for _ in range(2):
        counted(counter, cells)
    assert len(covered) == 1


def test_whole_cells_are_counted_once_for_all_who_share_a_grid() -> None:
    """Otherwise a thousand maps of different boxes would cost a thousand passes over all vendors."""
    index = fleet(2)
    looked = 0

    def mine(_: object) -> bool:
        nonlocal looked
        looked += 1
        return True

    cells = CellSums(index, mine)
    first = counted(Counter(counts_key(WORLD, 200, False)), cells)
    looked = 0
    box = Counter(counts_key(Box(-89.0, -170.0, 89.0, 170.0), 200, False))
    assert sum(sums[0] for sums in counted(box, cells).values()) < sum(sums[0] for sums in first.values())
    assert looked < len(index.vendors) / 2


def test_vendors_that_move_within_their_cells_are_not_counted_again() -> None:
    """A map of the world must not cost a look at every vendor that drives down a street."""
    index = fleet(3)
    cells = CellSums(index, lambda _: True)
    counted(Counter(counts_key(WORLD, 200, False)), cells)
    cells.refresh()
    for vendor in tuple(index.vendors.values()):
        index.put_fix(vendor.vendor_id, vendor.fix._replace(timestamp=NOW + 1, heading=90.0), NOW + 1)
    assert not any(index.recount.values())


def test_a_crowded_cell_does_not_stop_the_refreshing_of_others() -> None:
    """The bubble of a village must follow its vendors although a city, which is counted before it, has thousands."""
    index = LiveIndex("me")
    for number in range(AT_ONCE + 1):
        put(index, f"city{number}", 52.0, 21.0)
    put(index, "village", -48.0, 2.0)
    counter, cells = Counter(counts_key(WORLD, 200, False)), CellSums(index, lambda _: True)
    counted(counter, cells)
    index.put_fix("village", Fix(NOW + 1, -48.001, 2.0), NOW + 1)
    for _ in range(3):
        cells.refresh()
        groups = counted(counter, cells)
    means = sorted((sums[0], round(sums[3] / sums[0], 4)) for sums in groups.values())
    assert means == [(1, -48.001), (AT_ONCE + 1, 52.0)]


def test_only_what_changed_is_sent() -> None:
    """An overview must not cost a customer more than the changes in it."""
    index, key = LiveIndex("me"), counts_key(WORLD, 200, False)
    view, counter, cells = CountsView(key), Counter(key), CellSums(index, lambda _: True)
    put(index, "a", 10.0, 10.0)
    put(index, "b", 10.2, 10.2)
    put(index, "c", -40.0, -40.0)

    def update() -> dict[tuple[float, float], tuple[int, int, int]]:
        cells.refresh()
        groups = view.update(counted(counter, cells))
        return {(group.lat, group.long): (group.count, group.open, group.online) for group in groups}

    assert update() == {(10.1, 10.1): (2, 2, 2), (-40.0, -40.0): (1, 1, 1)}
    index.put_fix("a", Fix(NOW + 1, 10.01, 10.0), NOW + 1)
    assert update() == {}, "a mean that moved a little"
    index.put_card("a", Card(NOW + 2, "a", False, None), NOW + 2)
    assert update() == {(10.105, 10.1): (2, 1, 2)}
    index.remove("c")
    assert update() == {(-40.0, -40.0): (0, 0, 0)}
    assert [group.count for group in view.groups()] == [2]


@pytest.mark.parametrize(("detail", "level"), [(16, 1), (200, 3), (1000, 4)])
def test_the_world_at_each_detail(detail: int, level: int) -> None:
    """The level is part of a group's name: apps keep bubbles by it."""
    key = counts_key(WORLD, detail, False)
    assert key.level == level
    assert key.name(3 * (1 << 20) + 5) == f"{level}.3.5"


def test_sums_that_are_kept_stay_true() -> None:
    """A vendor that enters, leaves, opens, closes, moves or changes its process is counted again, with its cell."""
    chance, index = random.Random(5), fleet(5)
    cells = CellSums(index, lambda vendor: vendor.presence.owner == "me")
    counter = Counter(counts_key(WORLD, 200, False))
    for step in range(1, 400):
        id, now = f"v{chance.randrange(320)}", NOW + step
        act = chance.randrange(5)
        if act == 0:
            index.remove(id)
        elif act == 1:
            put(index, id, chance.uniform(-90, 90), chance.uniform(-180, 180))
        elif act == 2:
            index.put_card(id, Card(now, id, chance.random() < 0.5, None), now)
        elif act == 3 and id in index.vendors:
            index.put_presence(id, Presence(now, chance.choice(["me", "you"]), chance.choice([0, now])), now)
        else:
            index.put_fix(id, Fix(now, chance.uniform(-90, 90), chance.uniform(-180, 180)), now)
        cells.refresh()
        kept = [sums[:3] for _, sums in sorted(counted(counter, cells).items())]
        anew = [sums[:3] for _, sums in sorted(counted(counter, CellSums(index, cells.mine)).items())]
        assert kept == anew


def test_counting_gives_way() -> None:
    """One customer's count of the world must not hold up everybody else: it is made of many short steps."""
    index = fleet(3)
    for number in range(3 * AT_ONCE):
        put(index, f"crowd{number}", 10.0 + number % 70 / 100_000, 10.0)
    for area in (WORLD, Box(9.0, 9.0, 10.0003, 11.0), Polygon(((9.0, 9.0), (11.0, 9.0), (10.0, 10.0005)))):
        counter, cells = Counter(counts_key(area, 200, False)), CellSums(index, lambda _: True)
        steps = len(list(counter.steps(cells, {})))
        assert steps >= 3
        shown = sum(area.contains(v.shown.lat, v.shown.long) for v in index.vendors.values())
        assert sum(sums[0] for sums in counted(counter, cells).values()) == shown


def test_a_cell_that_changes_while_it_is_counted() -> None:
    """Its sum is not kept, or vendors that came meanwhile would be missing for as long as nothing else happens."""
    index = fleet(0)
    for number in range(3 * AT_ONCE):
        put(index, f"crowd{number}", 10.0 + number % 70 / 100_000, 10.0)
    counter, cells = Counter(counts_key(WORLD, 200, False)), CellSums(index, lambda _: True)
    steps = counter.steps(cells, {})
    next(steps)
    put(index, "late", 10.0, 10.0)
    cells.refresh()
    for _ in steps:
        pass
    assert sum(sums[0] for sums in counted(counter, cells).values()) == len(index.vendors)


@pytest.mark.parametrize("kept", [False, True])
def test_vendors_that_move_from_cell_to_cell_while_they_are_counted(kept: bool) -> None:
    """Each counts once: a map of very many vendors, of whom some always move, must not miss or double any."""
    chance, index = random.Random(3), fleet(0)
    towns = [(10.0, 10.0), (10.9, 10.0), (40.0, 60.0), (-20.0, -179.99)]
    ids = [f"crowd{number}" for number in range(5 * AT_ONCE)]
    for id in ids:
        put(index, id, *chance.choice(towns))
    counter, cells = Counter(counts_key(WORLD, 200, False)), CellSums(index, lambda _: True)
    if kept:
        counted(counter, cells)
        cells.refresh()
    groups: dict[int, list[float]] = {}
    moves = 0
    for now, _ in enumerate(counter.steps(cells, groups), NOW + 1):
        if moves < 240:  # the last pass over what changed finds none that moves
            for id in chance.sample(ids, 40):
                index.put_fix(id, Fix(now, *chance.choice(towns)), now)
            moves += 40
    assert moves > 0 or kept
    assert sum(sums[0] for sums in groups.values()) == len(index.vendors)
    anew = counted(Counter(counts_key(WORLD, 200, False)), CellSums(index, lambda _: True))
    assert {group: sums[0] for group, sums in groups.items()} == {group: sums[0] for group, sums in anew.items()}


@pytest.mark.parametrize("reports_here", [True, False])
def test_a_vendor_that_reports_over_http_after_its_socket_ended(
    reports_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted by the process that it reports to, from that report on, and by no other."""
    index = LiveIndex("me")
    local_vendors = LocalVendors(index, lambda _id, _parts: None, lambda: None)
    card = Card(NOW, "v", True, None)
    if reports_here:
        local_vendors.http("v", card, NOW)
        index.put_fix("v", Fix(NOW, 52.2, 21.0), NOW)
        index.put_presence("v", Presence(NOW, "you", NOW + 5), NOW + 5)
    else:
        local_vendors.connect("v", card, NOW)
        local_vendors.fix("v", Fix(NOW, 52.2, 21.0), NOW)
        local_vendors.disconnect("v", NOW + 5)
    counter, cells = Counter(counts_key(WORLD, 256, False)), CellSums(index, local_vendors.serves)
    assert sum(sums[0] for sums in counted(counter, cells).values()) == (not reports_here)
    if reports_here:
        local_vendors.http("v", card, NOW + 10)
    else:
        index.put_http("v", NOW + 10, NOW + 10)
    with monkeypatch.context() as patch:
        patch.setattr("streamer.live.counts.AT_ONCE", 0)  # no sum is due to be added up again
        cells.refresh()
    assert sum(sums[0] for sums in counted(counter, cells).values()) == reports_here
