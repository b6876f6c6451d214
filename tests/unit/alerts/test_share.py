"""Which process looks at which alerts."""

from __future__ import annotations

from streamer.alerts.share import slots_of
from streamer.storage.alerts import SLOTS


def test_each_slot_has_one_process() -> None:
    """Nobody evaluates the alerts of a slot without a process."""
    living = ["a", "b", "c", "d"]
    shares = [slots_of(process, living) for process in living]
    assert sorted(slot for share in shares for slot in share) == list(range(SLOTS))
    assert all(SLOTS / 8 < len(share) < SLOTS / 2 for share in shares)


def test_only_the_slots_of_who_left_change_hands() -> None:
    """Otherwise a restart of one process would make all processes read their alerts again."""
    before = {process: slots_of(process, ["a", "b", "c"]) for process in "abc"}
    after = {process: slots_of(process, ["a", "b"]) for process in "ab"}
    assert before["a"] <= after["a"]
    assert before["b"] <= after["b"]
    assert (after["a"] - before["a"]) | (after["b"] - before["b"]) == before["c"]
