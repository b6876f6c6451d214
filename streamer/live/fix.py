"""One vendor's position at one time, and the order in which fixes replace each other. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from streamer.clocks import CLOCK_TOLERANCE


def order(version: int, held: int, now: int) -> int:
    """Returns 1 if a version replaces the held one (up to 0: none is held), -1 if it does not, 0 if they are equal.

    A version that is ahead of the clock by more than the tolerance is from a process with a wrong clock. It is replaced
    by every other version: otherwise it would hide all of them until that time.
    """
    limit = now + CLOCK_TOLERANCE
    if held > 0 and (held > limit) != (version > limit):
        return 1 if held > limit else -1
    return (version > held) - (version < held)


class Fix(NamedTuple):
    """Where a vendor was: `timestamp` epoch ms, degrees, degrees clockwise from north, m/s.

    Two pings of one vendor and timestamp can reach two processes at once; PostgreSQL stores one of them. All processes
    must end with that one, in whatever order they receive them, so fixes are totally ordered: by version, timestamp,
    whether it is known to be the stored one, and finally by their bytes.
    """

    timestamp: int
    lat: float
    long: float
    heading: float | None = None
    speed: float | None = None
    ahead: int = 0
    """Milliseconds by which the timestamp was ahead of the server's clock when the ping arrived."""
    stored: bool = False
    """PostgreSQL stored this fix, after another ping with the same timestamp was shown."""

    @property
    def version(self) -> int:
        """The order of fixes: the timestamp, or the time of arrival if the timestamp was ahead."""
        return self.timestamp - self.ahead

    def register(self, vendor_id: str) -> bytes:
        """The JSON of Redis messages and hashes; for equal version and vendor, a greater fix has greater bytes."""
        return b"%b" % orjson.dumps(  # copied out of the 4 KB that orjson writes to
            (vendor_id, self.timestamp, int(self.stored), self.lat, self.long, self.heading, self.speed, self.ahead)
        )

    def replaces(self, held: Fix, now: int) -> bool:
        """Whether this fix replaces the held one; all processes decide the same, whichever came first."""
        if newer := order(self.timestamp - self.ahead, held.timestamp - held.ahead, now):
            return newer > 0
        if self.timestamp != held.timestamp or self.stored != held.stored:
            return (self.timestamp, self.stored) > (held.timestamp, held.stored)
        return self.register("") > held.register("")


def fix_of_register(register: list[Any]) -> tuple[str, Fix]:
    """The vendor and fix of a decoded register."""
    vendor_id, timestamp, stored, lat, long, heading, speed, ahead = register
    return vendor_id, Fix(timestamp, lat, long, heading, speed, ahead, stored == 1)
