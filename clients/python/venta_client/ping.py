"""One reported position and its encoding. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Reported(Protocol):
    """A ping: `timestamp` (epoch ms), degrees, and optionally `heading` (degrees), `speed` (m/s), `accuracy` (m)."""

    @property
    def timestamp(self) -> int: ...
    @property
    def lat(self) -> float: ...
    @property
    def long(self) -> float: ...
    @property
    def heading(self) -> float | None: ...
    @property
    def speed(self) -> float | None: ...
    @property
    def accuracy(self) -> float | None: ...


class Ping(NamedTuple):
    """One position of a vendor, identified by its vendor and `timestamp`: if sent twice, it is stored once."""

    timestamp: int
    lat: float
    long: float
    heading: float | None = None
    speed: float | None = None
    accuracy: float | None = None


def encode(batch: Sequence[tuple[int, Reported]]) -> bytes:
    """Encodes one or more pings with their seqs as one message, numbers in full precision."""
    if len(batch) == 1:
        return f'{{"type":"ping",{_members(*batch[0])}}}'.encode()
    pings = ",".join([f"{{{_members(seq, ping)}}}" for seq, ping in batch])
    return f'{{"type":"pings","pings":[{pings}]}}'.encode()


def _members(seq: int, ping: Reported) -> str:
    text = f'"seq":{seq},"lat":{ping.lat!r},"long":{ping.long!r},"timestamp":{ping.timestamp}'
    if ping.heading is not None:
        text += f',"heading":{ping.heading!r}'
    if ping.speed is not None:
        text += f',"speed":{ping.speed!r}'
    if ping.accuracy is not None:
        text += f',"accuracy":{ping.accuracy!r}'
    return text
