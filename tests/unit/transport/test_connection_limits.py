"""Connection limits: a wrong count locks a user out, or limits none."""

from __future__ import annotations

import pytest

from streamer.errors import CloseCode, Disconnect
from streamer.ingest.cost import CostBudgets, CostLimits
from streamer.transport.connection_limits import ConnectionLimits, ConnectionSlot

COST = CostBudgets(CostLimits()).client(None, 0.0)


def test_slots_become_free_again() -> None:
    """Who closed a connection may open another; counts of those who left take no memory."""
    connection_limits = ConnectionLimits(per_user=2, per_address=3)
    taken = []
    for number in range(3):
        slot = ConnectionSlot(connection_limits, "203.0.113.7", COST)
        slot.check_address()
        if number < 2:
            slot.set_user("user_1")
        taken.append(slot)
    with pytest.raises(Disconnect, match="user_1") as full:
        taken[2].set_user("user_1")
    assert full.value.close is CloseCode.TOO_MANY
    with pytest.raises(Disconnect, match=r"203\.0\.113\.7") as crowded:
        ConnectionSlot(connection_limits, "203.0.113.7", COST).check_address()
    assert crowded.value.close is CloseCode.TOO_MANY
    assert connection_limits.addresses == {"203.0.113.7": 4}
    taken[0].set_user("user_1")  # the same again, as an `auth` does
    taken[0].set_user("user_2")
    assert connection_limits.users == {"user_1": 2, "user_2": 1}
    for slot in taken:
        slot.release()
        slot.release()
    assert not connection_limits.users
    assert connection_limits.addresses == {"203.0.113.7": 1}
