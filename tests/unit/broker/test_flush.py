"""What a flush sends: in which order, and how much at once."""

from __future__ import annotations

import orjson

from streamer.broker.flush import Dropping, Flush
from streamer.broker.redis_schema import ANY_VERSION, BROADCAST, CHUNK, channel
from streamer.geo.grid import bus_cell
from streamer.live.fix import Fix
from streamer.live.index import LiveIndex
from streamer.live.local_vendors import Part
from streamer.live.vendor import Card, Presence

NOW = 1_700_000_000_000
HERE, AFAR = bus_cell(52.23, 21.01), bus_cell(53.43, 14.55)


def test_many_vendors_are_several_messages() -> None:
    """A message is taken in without a turn for others: one of all vendors of a city would stop every process."""
    index, flush = LiveIndex("one"), Flush()
    for number in range(2 * CHUNK + 1):
        id = f"v{number}"
        index.put_presence(id, Presence(NOW, "one", 0), NOW)
        index.put_card(id, Card(NOW, id, True, None), NOW)
        index.put_fix(id, Fix(NOW, 52.23, 21.01), NOW)
        flush.write(HERE, index.vendors[id], Part.ALL)
    flush.drop(AFAR, {"v0": Dropping(ANY_VERSION), "gone": Dropping(ANY_VERSION, gone=True)}, index)
    commands = [command for _, command in flush.commands("one", ())]
    for name in (channel(HERE), BROADCAST):
        messages = [orjson.loads(command.words[2]) for command in commands if command.words[:2] == ("SPUBLISH", name)]
        assert [len(fixes) for _, fixes, *_ in messages] == [CHUNK, CHUNK, 1]
        assert len({fix[0] for _, fixes, *_ in messages for fix in fixes}) == 2 * CHUNK + 1
    kinds = [str(command.words[0]) for command in commands if channel(HERE) in command.key]
    assert kinds == ["EVAL"] * 3 + ["SPUBLISH"] * 3, "stored, then published"
    dropped, published = [command for command in commands if channel(AFAR) in command.key]
    assert dropped.words[0] == "EVAL"
    _, fixes, _, _, _, gone = orjson.loads(published.words[2])
    assert ([fix[0] for fix in fixes], gone) == (["v0"], ["gone"])
