"""Budgets of CPU time: without them one client's legal messages could block all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.ingest.cost import BURST, RESUME, CostBudgets, CostLimits
from streamer.ingest.rate_limit import MIN_PRUNE

LIMITS = CostLimits(connection=0.02, user=0.06, address=0.3, heavy=0.1)


def test_a_burst_is_free() -> None:
    """A customer who opens the app and a dozen watches at once is served at once."""
    client = CostBudgets(LIMITS).client("192.0.2.1", 0.0)
    client.charge(0.02 * BURST, 0.0)
    assert client.wait(0.0) == 0
    client.charge(0.02, 0.0)
    assert client.wait(0.0) == pytest.approx(1.0)
    assert client.wait(1.0) == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.0001, 0.01)), min_size=50, max_size=200))
def test_no_client_uses_more_than_its_share(steps: list[tuple[float, float]]) -> None:
    """Whatever it sends and when, one that is served only when it may be uses its rate and one burst, and a message."""
    client = CostBudgets(LIMITS).client(None, 0.0)
    now = used = 0.0
    for pause, cost in steps:
        now += pause + client.wait(now + pause)
        client.charge(cost, now)
        used += cost
        assert used <= 0.02 * (now + BURST) + 0.01 + 1e-9


def test_a_user_is_one_client() -> None:
    """Two hundred connections of one user take no more of the server than three."""
    budgets = CostBudgets(LIMITS)
    first, second, other = (budgets.client(None, 0.0) for _ in range(3))
    for client, user in ((first, "mallory"), (second, "mallory"), (other, "alice")):
        client.set_user(user, 0.0)
    for number in range(10):
        client = budgets.client(None, 0.0)
        client.set_user("mallory", 0.0)
        client.charge(0.1, float(number) / 10)
    assert second.wait(1.0) > 5
    assert other.wait(1.0) == 0
    second.set_user("alice", 1.0)
    assert second.wait(1.0) == 0, "a new token is another user's"
    assert first.user == "mallory"


def test_an_address_is_one_client() -> None:
    """Many users made for the purpose, all from one address, are held to the share of that address."""
    budgets = CostBudgets(LIMITS)
    for number in range(40):
        client = budgets.client("192.0.2.1", 0.0)
        client.set_user(str(number), 0.0)
        client.charge(0.05, 0.0)
    assert budgets.client("192.0.2.1", 0.0).wait(0.0) > 1
    assert budgets.client("192.0.2.2", 0.0).wait(0.0) == 0


def test_heavy_clients_share_one_budget() -> None:
    """Forty clients, each within its own limits, must not add up to a whole core; one who asks for little goes on."""
    budgets = CostBudgets(LIMITS)
    heavy = [budgets.client(str(number), 0.0) for number in range(40)]
    for client in heavy:
        client.charge(0.06, 0.0)
    assert max(client.wait(0.0) for client in heavy) > 10
    quiet = budgets.client("quiet", 0.0)
    quiet.charge(0.01, 0.0)
    assert quiet.wait(0.0) == 0


def test_a_client_with_steady_high_use_is_heavy() -> None:
    """One that stays just within its share never waits, and forty of these would be most of a core."""
    budgets = CostBudgets(LIMITS)
    steady = [budgets.client(str(number), 0.0) for number in range(40)]
    served = 0.0
    for second in range(120):
        for client in steady:
            if not client.wait(float(second)):
                client.charge(0.019, float(second))
                served += 0.019 * (second >= 60)
    assert served / 60 < 0.2, "a tenth of what they may, and the share of heavy clients"
    panning, typing = budgets.client("panning", 0.0), budgets.client("typing", 0.0)
    for second in range(120):
        panning.charge(0.005 if second % 30 < 10 else 0, float(second))
        typing.charge(0.002, float(second))
        assert panning.wait(float(second)) == typing.wait(float(second)) == 0


def test_ordinary_watching_is_free() -> None:
    """Two thousand customers behind one address of a mobile network watch the town, which must not be limited."""
    budgets = CostBudgets(LIMITS)
    customers = [budgets.client("192.0.2.1", 0.0) for _ in range(2000)]
    for second in range(60):
        for customer in customers:
            customer.charge_watching(0.0009, float(second))
    assert max(customer.wait(60.0) for customer in customers) == 0


def test_costly_watching_is_charged() -> None:
    """A client whose watches cost more than its share is over it, and is so until the excess has drained."""
    client = CostBudgets(LIMITS).client("192.0.2.1", 0.0)
    for second in range(10):
        client.charge_watching(0.04, float(second))
    wait = client.wait(10.0)
    assert wait == pytest.approx((10 * 0.04 - 0.005 - 0.001 * 9 - 0.02 * 10) / 0.02 - BURST, abs=0.5)
    assert client.wait(10.0, resting=True) == pytest.approx(wait + BURST - RESUME), "watches come back after messages"


def test_what_is_remembered_is_bounded() -> None:
    """Addresses and users are names that clients choose: those that used nothing lately are forgotten."""
    budgets = CostBudgets(LIMITS)
    busy = budgets.client("busy", 0.0)
    busy.charge(100.0, 0.0)
    for number in range(5 * MIN_PRUNE):
        budgets.client(str(number), 1.0)
    assert len(budgets.addresses) <= MIN_PRUNE
    assert budgets.client("busy", 1.0).wait(1.0) > 0
